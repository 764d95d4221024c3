{{/* The lease that operators elect one by. */}}
{{- define "shardkv-operator.lease" -}}
{{ include "shardkv-operator.fullname" . }}
{{- end }}

{{/* The operator's options, as its environment has them after SHARDKV_OPERATOR_. */}}
{{- define "shardkv-operator.options" -}}
LISTEN: 0.0.0.0:8080
LOG_FORMAT: {{ .Values.logging.format }}
LOG_FILTER: {{ .Values.logging.filter | quote }}
CONCURRENCY: {{ .Values.concurrency | quote }}
LEADER_ELECT: {{ .Values.leaderElection.enabled | quote }}
{{- if .Values.leaderElection.enabled }}
LEASE_NAME: {{ include "shardkv-operator.lease" . | quote }}
{{- end }}
{{- with .Values.watchNamespaces }}
WATCH_NAMESPACE: {{ uniq . | join "," | quote }}
{{- end }}
{{- end }}
