{{- define "cnc-edge.name" -}}
{{ default .Chart.Name .Values.nameOverride }}
{{- end }}

{{- define "cnc-edge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains (include "cnc-edge.name" .) .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "cnc-edge.name" .) | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- /* The name is fixed: by it the chart cnc-monitor lets agents reach its NATS. */ -}}
{{- define "cnc-edge.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: cnc-edge
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "cnc-edge.labels" -}}
{{- $root := index . 0 -}}
{{ include "cnc-edge.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: cnc-monitor
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "cnc-edge.image" -}}
{{- $name := .Values.image.repository -}}
{{- if .Values.image.registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .Values.image.registry) $name -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" $name .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}
{{- end }}

{{- define "cnc-edge.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cnc-edge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Settings as environment variables: [section, map]. Numbers that Helm holds as floats stay whole. */ -}}
{{- define "cnc-edge.settings" -}}
{{- $section := index . 0 -}}
{{- range $field, $value := index . 1 }}
- name: {{ printf "CNCMON_%s_%s" $section (upper $field) }}
  {{- if kindIs "slice" $value }}
  value: {{ join "," $value | quote }}
  {{- else if and (kindIs "float64" $value) (eq $value (floor $value)) }}
  value: {{ int64 $value | quote }}
  {{- else }}
  value: {{ toString $value | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "cnc-edge.natsEnv" -}}
{{- $nats := .Values.nats -}}
{{- if not $nats.servers -}}
{{- fail "nats.servers is needed: where NATS is, such as [nats://nats.example:4222]" -}}
{{- end -}}
- name: CNCMON_NATS_SERVERS
  value: {{ join "," $nats.servers | quote }}
{{- with $nats.existingSecret }}
- name: CNCMON_NATS_USER
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $nats.userKey }}}
- name: CNCMON_NATS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $nats.passwordKey }}}
{{- end }}
{{- if $nats.tlsSecret }}
- name: CNCMON_NATS_TLS_CA_FILE
  value: /etc/cncmon/nats/ca.crt
{{- if $nats.clientCertificate }}
- name: CNCMON_NATS_TLS_CERT_FILE
  value: /etc/cncmon/nats/tls.crt
- name: CNCMON_NATS_TLS_KEY_FILE
  value: /etc/cncmon/nats/tls.key
{{- end }}
{{- end }}
{{- include "cnc-edge.settings" (list "NATS" $nats.settings) }}
{{- end }}

{{- define "cnc-edge.claim" -}}
{{- $root := index . 0 -}}
- metadata:
    name: {{ index . 1 }}
    labels: {{- include "cnc-edge.selector" (list $root "agent") | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with (index . 2).storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests: {storage: {{ (index . 2).size }}}
{{- end }}
