{{/* The resource's name. Longer ones are possible, but then the operator shortens the names of what it makes. */}}
{{- define "shardkv.name" -}}
{{- $name := default .Release.Name .Values.nameOverride }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,33}[a-z0-9])?$" $name) }}
{{- fail (printf "%q can't be the name of a cluster: a letter, then a-z, 0-9 and '-', 35 characters at most. Set nameOverride" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "shardkv.selector" -}}
app.kubernetes.io/name: shardkv
app.kubernetes.io/instance: {{ include "shardkv.name" . | quote }}
{{- end }}

{{- define "shardkv.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "shardkv.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: shardkv
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "shardkv.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Where applications connect. */}}
{{- define "shardkv.endpoint" -}}
{{ include "shardkv.name" . }}-client.{{ .Release.Namespace }}.svc:7400
{{- end }}
