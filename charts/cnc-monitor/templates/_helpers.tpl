{{- /* Names, labels and the parts that pods share. Arguments that are lists begin with the root context. */ -}}

{{- define "cnc-monitor.name" -}}
{{ default .Chart.Name .Values.nameOverride }}
{{- end }}

{{- define "cnc-monitor.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains (include "cnc-monitor.name" .) .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name (include "cnc-monitor.name" .) | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "cnc-monitor.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "cnc-monitor.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "cnc-monitor.labels" -}}
{{- $root := index . 0 -}}
{{ include "cnc-monitor.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: cnc-monitor
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "cnc-monitor.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := $image.repository -}}
{{- if $root.Values.image.registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" $root.Values.image.registry) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $name $image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (coalesce $image.tag $root.Values.image.tag $root.Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- define "cnc-monitor.serverImage" -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository .tag }}
{{- end -}}
{{- end }}

{{- define "cnc-monitor.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cnc-monitor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Where a pod runs and how it ends: [root, component, values]. */ -}}
{{- define "cnc-monitor.scheduling" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.topologySpread }}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "cnc-monitor.selector" (list $root (index $ 1)) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{- /* Probes of a service of ours, on a named port. Starting may take three minutes: it waits for its servers then. */ -}}
{{- define "cnc-monitor.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 2
  failureThreshold: 90
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- /* A service's settings as environment variables: [section, map]. Numbers that Helm holds as floats stay whole. */ -}}
{{- define "cnc-monitor.settings" -}}
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

{{- define "cnc-monitor.natsName" -}}
{{ include "cnc-monitor.fullname" . }}-nats
{{- end }}

{{- define "cnc-monitor.databaseName" -}}
{{ include "cnc-monitor.fullname" . }}-database
{{- end }}

{{- /* How our services reach NATS. */ -}}
{{- define "cnc-monitor.natsEnv" -}}
{{- $nats := .Values.nats -}}
- name: CNCMON_NATS_SERVERS
{{- if eq $nats.mode "bundled" }}
  value: {{ printf "%s://%s:4222" (ternary "tls" "nats" (ne $nats.tlsSecret "")) (include "cnc-monitor.natsName" .) }}
- name: CNCMON_NATS_USER
  valueFrom:
    secretKeyRef: {name: {{ default (include "cnc-monitor.natsName" .) $nats.bundled.existingSecret }}, key: username}
- name: CNCMON_NATS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ default (include "cnc-monitor.natsName" .) $nats.bundled.existingSecret }}, key: password}
{{- else }}
  value: {{ join "," $nats.external.servers | quote }}
{{- with $nats.external.existingSecret }}
- name: CNCMON_NATS_USER
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $nats.external.userKey }}}
- name: CNCMON_NATS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $nats.external.passwordKey }}}
{{- end }}
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
{{- include "cnc-monitor.settings" (list "NATS" $nats.settings) }}
{{- end }}

{{- define "cnc-monitor.natsMount" -}}
{{- if .Values.nats.tlsSecret }}
- name: nats-tls
  mountPath: /etc/cncmon/nats
  readOnly: true
{{- end }}
{{- end }}

{{- define "cnc-monitor.natsVolume" -}}
{{- if .Values.nats.tlsSecret }}
- name: nats-tls
  secret: {secretName: {{ .Values.nats.tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- /* Where the database is: [root, variable]. */ -}}
{{- define "cnc-monitor.databaseEnv" -}}
{{- $root := index . 0 -}}
{{- $database := $root.Values.database -}}
{{- $name := include "cnc-monitor.databaseName" $root -}}
{{- if eq $database.mode "bundled" -}}
- name: DATABASE_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ default $name $database.bundled.existingSecret }}, key: password}
- name: {{ index . 1 }}
  value: postgresql://cncmon:$(DATABASE_PASSWORD)@{{ $name }}:5432/cncmon
{{- else -}}
- name: {{ index . 1 }}
  valueFrom:
{{- if eq $database.mode "cnpg" }}
    secretKeyRef: {name: {{ $name }}-app, key: uri}
{{- else }}
    secretKeyRef: {name: {{ required "database.external.existingSecret is needed with database.mode external" $database.external.existingSecret }}, key: {{ $database.external.secretKey }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "cnc-monitor.serviceEnv" -}}
- name: CNCMON_SERVICE_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: CNCMON_SERVICE_MONITOR_HOST
  value: 0.0.0.0
- name: CNCMON_SERVICE_MONITOR_PORT
  value: "9090"
{{- end }}

{{- define "cnc-monitor.streamReplicas" -}}
{{ ternary .Values.nats.bundled.replicas .Values.nats.external.streamReplicas (eq .Values.nats.mode "bundled") }}
{{- end }}

{{- define "cnc-monitor.operatorEnv" -}}
- name: CNCMON_OPERATOR_NAMESPACE
  valueFrom:
    fieldRef: {fieldPath: metadata.namespace}
{{- end }}
