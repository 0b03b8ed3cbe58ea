{{- /* Rules of NetworkPolicies that several components have. */ -}}

{{- define "cnc-monitor.toNats" }}
    - ports: [{port: {{ ternary 4222 .Values.networkPolicy.natsPort (eq .Values.nats.mode "bundled") }}, protocol: TCP}]
      {{- if eq .Values.nats.mode "bundled" }}
      to:
        - podSelector:
            matchLabels: {{- include "cnc-monitor.selector" (list . "nats") | nindent 14 }}
      {{- else if .Values.networkPolicy.natsTo }}
      to: {{- toYaml .Values.networkPolicy.natsTo | nindent 8 }}
      {{- end }}
{{- end }}

{{- define "cnc-monitor.toDatabase" }}
    - ports: [{port: {{ ternary .Values.database.external.port 5432 (eq .Values.database.mode "external") }}, protocol: TCP}]
      {{- if ne .Values.database.mode "external" }}
      to:
        - podSelector:
            {{- if eq .Values.database.mode "cnpg" }}
            matchLabels: {cnpg.io/cluster: {{ include "cnc-monitor.databaseName" . }}}
            {{- else }}
            matchLabels: {{- include "cnc-monitor.selector" (list . "database") | nindent 14 }}
            {{- end }}
      {{- else if .Values.networkPolicy.databaseTo }}
      to: {{- toYaml .Values.networkPolicy.databaseTo | nindent 8 }}
      {{- end }}
{{- end }}

{{- define "cnc-monitor.toApiServer" }}
    - ports:
        {{- range .Values.networkPolicy.apiServerPorts }}
        - {port: {{ . }}, protocol: TCP}
        {{- end }}
      {{- with .Values.networkPolicy.apiServerTo }}
      to: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{- define "cnc-monitor.metricsFrom" }}
      from:
      {{- if .Values.networkPolicy.metricsFrom }}
      {{- toYaml .Values.networkPolicy.metricsFrom | nindent 8 }}
      {{- else }}
        - namespaceSelector: {}
      {{- end }}
{{- end }}

{{- define "cnc-monitor.toReceiver" }}
{{- $url := urlParse .Values.tracing.otlpEndpoint }}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) }}
    - ports: [{port: {{ $port }}, protocol: TCP}]
{{- end }}
