{{/*
All that the operator may do with clusters and their objects; a test compares it with what it does. Secrets, nodes and other people's
objects are none of its business.
*/}}
{{- define "shardkv-operator.rules" -}}
- apiGroups: [shardkv.io]
  resources: [shardkvclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [shardkv.io]
  resources: [shardkvclusters/status]
  verbs: [patch]
# For owner references that block deletion, where the API server checks them (OwnerReferencesPermissionEnforcement).
- apiGroups: [shardkv.io]
  resources: [shardkvclusters/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
