{{/* The chart's name, at most 63 characters, as a label's value must be. */}}
{{- define "shardkv-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Base of the objects' names. At most 50 characters, because suffixes such as -metrics follow. */}}
{{- define "shardkv-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Labels that select the operator's pods. They must never change, because a Deployment's selector is immutable. */}}
{{- define "shardkv-operator.selector" -}}
app.kubernetes.io/name: {{ include "shardkv-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of objects. The user's labels can't replace these. */}}
{{- define "shardkv-operator.labels" -}}
{{- $own := include "shardkv-operator.selector" . | fromYaml }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/component" "operator" }}
{{- $_ := set $own "app.kubernetes.io/part-of" "shardkv" }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- toYaml (merge $own .Values.commonLabels) }}
{{- end }}

{{/* Labels of pods, without the chart's version, so that a new version of the chart alone doesn't restart the pods. */}}
{{- define "shardkv-operator.podLabels" -}}
{{- $own := include "shardkv-operator.selector" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/component" "operator" }}
{{- $_ := set $own "app.kubernetes.io/part-of" "shardkv" }}
{{- toYaml (merge $own .Values.podLabels .Values.commonLabels) }}
{{- end }}

{{/*
Metadata of an object. Takes a dict of root, and optionally suffix (of the name), namespace, everywhere (no namespace), labels and
annotations.
*/}}
{{- define "shardkv-operator.metadata" -}}
{{- $annotations := merge (dict) (default dict .annotations) .root.Values.commonAnnotations -}}
name: {{ include "shardkv-operator.fullname" .root }}{{ .suffix }}
{{- if not .everywhere }}
namespace: {{ default .root.Release.Namespace .namespace }}
{{- end }}
labels:
  {{- merge (include "shardkv-operator.labels" .root | fromYaml) (default dict .labels) | toYaml | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "shardkv-operator.account" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "shardkv-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name must be set when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "shardkv-operator.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}
