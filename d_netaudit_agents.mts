import type {Checked} from "./schema.mjs"; (
{
  "uid": "netaudit-agents",
  "title": "netaudit / Agent health",
  "description": "Whether the agents see everything, and what they lose.",
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
      }
    ]
  },
  "panels": [
    {
      "id": 1,
      "type": "table",
      "title": "Agents",
      "description": "Version, uptime, whether Prometheus reaches them and how long that takes.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 0, "w": 24, "h": 7},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (instance) (up{job=~\"$job\", instance=~\"$instance\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "B",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (instance, version) (netaudit_build_info{job=~\"$job\", instance=~\"$instance\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "C",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "time() - max by (instance) (netaudit_start_timestamp_seconds{job=~\"$job\", instance=~\"$instance\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "D",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (instance) (scrape_duration_seconds{job=~\"$job\", instance=~\"$instance\"})",
          "format": "table",
          "instant": true,
          "range": false
        }
      ],
      "fieldConfig": {
        "defaults": {"unit": "short"},
        "overrides": [
          {"matcher": {"id": "byName", "options": "Uptime"}, "properties": [{"id": "unit", "value": "s"}]},
          {"matcher": {"id": "byName", "options": "Scrape"}, "properties": [{"id": "unit", "value": "s"}]}
        ]
      },
      "options": {"showHeader": true, "cellHeight": "sm"},
      "transformations": [
        {"id": "merge", "options": {}},
        {
          "id": "organize",
          "options": {
            "excludeByName": {"Time": true, "Value #B": true},
            "indexByName": {},
            "renameByName": {"Value #A": "Up", "Value #C": "Uptime", "Value #D": "Scrape"}
          }
        }
      ]
    },
    {
      "id": 2,
      "type": "timeseries",
      "title": "Records made",
      "description": "By the kernel, by kind.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 7, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind) (rate(netaudit_records_made_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{kind}}"
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
      "title": "Records taken",
      "description": "From the ring, by agent.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 7, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (instance) (rate(netaudit_records_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
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
      "id": 4,
      "type": "timeseries",
      "title": "Records lost",
      "description": "By where and why. Anything above 0 means that something is not told.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 15, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (stage, cause) (rate(netaudit_records_lost_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{stage}}: {{cause}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 5,
      "type": "timeseries",
      "title": "Records folded",
      "description": "They found no room in the ring and are counted together: details are gone, counts are not.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 15, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind) (rate(netaudit_records_folded_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{kind}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 6,
      "type": "timeseries",
      "title": "Records that wait",
      "description": "held: for somebody to become known. pending: for an outcome.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 23, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (state) (netaudit_waiting_records{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{state}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 7,
      "type": "timeseries",
      "title": "Kubernetes objects",
      "description": "In the index, the most of any agent.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 23, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (kind) (netaudit_objects{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{kind}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 8,
      "type": "timeseries",
      "title": "Invalid objects",
      "description": "That cannot be read, wholly or in part.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 31, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (instance) (netaudit_invalid_objects{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{instance}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 9,
      "type": "timeseries",
      "title": "Faults of watches",
      "description": "Of the sources of Kubernetes objects.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 31, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind) (rate(netaudit_watch_errors_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{kind}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 10,
      "type": "bargauge",
      "title": "Kinds that are listed",
      "description": "yes where every agent has listed all objects of the kind once.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 39, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min by (kind) (netaudit_watch_ready{job=~\"$job\", instance=~\"$instance\"})",
          "instant": true,
          "range": false,
          "format": "time_series",
          "legendFormat": "{{kind}}"
        }
      ],
      "fieldConfig": {
        "defaults": {
          "unit": "short",
          "mappings": [
            {
              "type": "value",
              "options": {"0": {"text": "no", "color": "red", "index": 0}, "1": {"text": "yes", "color": "green", "index": 1}}
            }
          ]
        },
        "overrides": []
      },
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
      "id": 11,
      "type": "bargauge",
      "title": "Kernel hooks",
      "description": "yes where every agent has attached the optional hook.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 39, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min by (hook) (netaudit_hook_attached{job=~\"$job\", instance=~\"$instance\"})",
          "instant": true,
          "range": false,
          "format": "time_series",
          "legendFormat": "{{hook}}"
        }
      ],
      "fieldConfig": {
        "defaults": {
          "unit": "short",
          "mappings": [
            {
              "type": "value",
              "options": {"0": {"text": "no", "color": "red", "index": 0}, "1": {"text": "yes", "color": "green", "index": 1}}
            }
          ]
        },
        "overrides": []
      },
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
      "id": 12,
      "type": "timeseries",
      "title": "Questions to connection tracking",
      "description": "Where a flow to a Service went, by how the question ended.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 47, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (result) (rate(netaudit_conntrack_lookups_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{result}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 13,
      "type": "timeseries",
      "title": "DNS packets",
      "description": "Only with dnsNames: packets from port 53 by what became of them.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 47, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (became) (rate(netaudit_dns_answers_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{became}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 14,
      "type": "timeseries",
      "title": "DNS names known",
      "description": "Only with dnsNames: addresses that have names, and the names.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 55, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum(netaudit_dns_addresses{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "addresses"
        },
        {
          "refId": "B",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum(netaudit_dns_names{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "names"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    }
  ]
}
) satisfies Checked;
