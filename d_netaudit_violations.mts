import type {Checked} from "./schema.mjs"; (
{
  "uid": "netaudit-violations",
  "title": "netaudit / Violations",
  "description": "Denied flows: who, what, when, and by which policy.",
  "tags": ["netaudit"],
  "schemaVersion": 39,
  "editable": true,
  "graphTooltip": 1,
  "fiscalYearStartMonth": 0,
  "time": {"from": "now-6h", "to": "now"},
  "timepicker": {},
  "timezone": "browser",
  "refresh": "1m",
  "annotations": {"list": []},
  "links": [
    {
      "title": "netaudit",
      "type": "dashboards",
      "tags": ["netaudit"],
      "asDropdown": true,
      "includeVars": true,
      "keepTime": true,
      "targetBlank": false,
      "icon": "external link",
      "tooltip": "",
      "url": ""
    }
  ],
  "templating": {
    "list": [
      {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": false,
        "multi": false,
        "regex": "",
        "options": []
      },
      {
        "type": "query",
        "name": "job",
        "label": "Job",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(netaudit_build_info, job)", "refId": "job"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": true,
        "multi": true,
        "allValue": ".*",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        "options": []
      },
      {
        "type": "query",
        "name": "instance",
        "label": "Instance",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(netaudit_build_info{job=~\"$job\"}, instance)", "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": true,
        "multi": true,
        "allValue": ".*",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        "options": []
      },
      {
        "type": "query",
        "name": "namespace",
        "label": "Source namespace",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(netaudit_violations_total{job=~\"$job\"}, source_namespace)", "refId": "namespace"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": true,
        "multi": true,
        "allValue": ".*",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        "options": []
      }
    ]
  },
  "panels": [
    {
      "id": 1,
      "type": "table",
      "title": "Denied flows, the latest first",
      "description": "Each series with the time of its last flow. The flow log has every single one.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 0, "w": 24, "h": 10},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sort_desc(max without (instance, node, pod, container, endpoint) (netaudit_violation_last_timestamp_seconds{job=~\"$job\", instance=~\"$instance\", source_namespace=~\"$namespace\"}) * 1000)",
          "format": "table",
          "instant": true,
          "range": false
        }
      ],
      "fieldConfig": {
        "defaults": {"unit": "short"},
        "overrides": [{"matcher": {"id": "byName", "options": "Last"}, "properties": [{"id": "unit", "value": "dateTimeAsIso"}]}]
      },
      "options": {"showHeader": true, "cellHeight": "sm"},
      "transformations": [
        {"id": "organize", "options": {"excludeByName": {"Time": true, "job": true}, "indexByName": {}, "renameByName": {"Value": "Last"}}},
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "Last", "desc": true}]}}
      ]
    },
    {
      "id": 2,
      "type": "timeseries",
      "title": "Denied flows by finding",
      "description": "unenforced: it passed. blocked: it was stopped. denied-refused: it reached a closed port. attempted: not known.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 10, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (finding) (rate(netaudit_violations_total{job=~\"$job\", instance=~\"$instance\", source_namespace=~\"$namespace\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{finding}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 3,
      "type": "timeseries",
      "title": "Denied and passed, by cause",
      "description": "Why it passed, where that is known; an empty cause is the worst.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 10, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (cause) (rate(netaudit_violations_total{job=~\"$job\", instance=~\"$instance\", source_namespace=~\"$namespace\", finding=\"unenforced\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{cause}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 4,
      "type": "bargauge",
      "title": "Workloads with most denied flows",
      "description": "Since their agents started.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 18, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "topk(10, sum by (source_namespace, source_workload) (netaudit_violations_total{job=~\"$job\", instance=~\"$instance\", source_namespace=~\"$namespace\"}))",
          "instant": true,
          "range": false,
          "format": "time_series",
          "legendFormat": "{{source_namespace}}/{{source_workload}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "color",
        "namePlacement": "auto",
        "showUnfilled": true,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": false},
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 5,
      "type": "bargauge",
      "title": "Policies that deny most",
      "description": "The deciding policy, the first by name where several isolate. Since the agents started.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 18, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "topk(10, sum by (policy) (netaudit_violations_total{job=~\"$job\", instance=~\"$instance\", source_namespace=~\"$namespace\"}))",
          "instant": true,
          "range": false,
          "format": "time_series",
          "legendFormat": "{{policy}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "color",
        "namePlacement": "auto",
        "showUnfilled": true,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": false},
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 6,
      "type": "timeseries",
      "title": "Packets that the node's filter dropped",
      "description": "By what became of them in netaudit: recorded, repeated, answer or unreadable.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 26, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (told) (rate(netaudit_filter_drops_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{told}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "pps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 7,
      "type": "timeseries",
      "title": "Denied flows with folded labels",
      "description": "Above 0 the budget of series is spent: destination, then port are \"other\". The source is never folded.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 26, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (instance) (rate(netaudit_violations_folded_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{instance}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 8,
      "type": "table",
      "title": "Raw sockets",
      "description": "Who makes packets that no policy sees, and when last.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 34, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind, namespace, workload) (netaudit_raw_sockets_total{job=~\"$job\", instance=~\"$instance\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "B",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (kind, namespace, workload) (netaudit_raw_socket_last_timestamp_seconds{job=~\"$job\", instance=~\"$instance\"}) * 1000",
          "format": "table",
          "instant": true,
          "range": false
        }
      ],
      "fieldConfig": {
        "defaults": {"unit": "short"},
        "overrides": [{"matcher": {"id": "byName", "options": "Last"}, "properties": [{"id": "unit", "value": "dateTimeAsIso"}]}]
      },
      "options": {"showHeader": true, "cellHeight": "sm"},
      "transformations": [
        {"id": "merge", "options": {}},
        {
          "id": "organize",
          "options": {"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": {"Value #A": "Sockets", "Value #B": "Last"}}
        }
      ]
    },
    {
      "id": 9,
      "type": "table",
      "title": "Accepted exceptions",
      "description": "How long each holds; below 0 it is over, and what it accepted counts in full again.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 34, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min by (name, owner) (netaudit_accepted_expires_timestamp_seconds{job=~\"$job\", instance=~\"$instance\"}) - time()",
          "format": "table",
          "instant": true,
          "range": false
        }
      ],
      "fieldConfig": {"defaults": {"unit": "s"}, "overrides": []},
      "options": {"showHeader": true, "cellHeight": "sm"},
      "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": {"Value": "Time left"}}}]
    }
  ]
}
) satisfies Checked;
