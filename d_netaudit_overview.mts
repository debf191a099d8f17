import type {Checked} from "./schema.mjs"; (
{
  "uid": "netaudit-overview",
  "title": "netaudit / Overview",
  "description": "What the nodes' flows are, what the policies say of them, and whether anything enforces it.",
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
      "type": "stat",
      "title": "Denied and passed, last hour",
      "description": "Series of denied flows that reached their destination in the last hour and that no exception accepts.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "count(max without (instance, node, pod, container, endpoint) (netaudit_violation_last_timestamp_seconds{job=~\"$job\", instance=~\"$instance\", finding=\"unenforced\", accepted=\"\"}) > time() - 3600) or vector(0)",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {
        "defaults": {
          "unit": "short",
          "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": null}, {"color": "red", "value": 1}]},
          "color": {"mode": "thresholds"}
        },
        "overrides": []
      },
      "options": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": true,
        "showPercentChange": false,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 2,
      "type": "stat",
      "title": "Denied, last hour",
      "description": "Series of denied flows of the last hour, whatever became of them.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 6, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "count(max without (instance, node, pod, container, endpoint) (netaudit_violation_last_timestamp_seconds{job=~\"$job\", instance=~\"$instance\"}) > time() - 3600) or vector(0)",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {
        "defaults": {
          "unit": "short",
          "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": null}, {"color": "red", "value": 1}]},
          "color": {"mode": "thresholds"}
        },
        "overrides": []
      },
      "options": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": true,
        "showPercentChange": false,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 3,
      "type": "stat",
      "title": "Agents that answer",
      "description": "Agents that Prometheus can scrape.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum(up{job=~\"$job\", instance=~\"$instance\"})",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {
        "defaults": {
          "unit": "short",
          "thresholds": {"mode": "absolute", "steps": [{"color": "red", "value": null}, {"color": "green", "value": 1}]},
          "color": {"mode": "thresholds"}
        },
        "overrides": []
      },
      "options": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": true,
        "showPercentChange": false,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 4,
      "type": "stat",
      "title": "Flows",
      "description": "Flows seen a second, over all nodes.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 18, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum(rate(netaudit_flows_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": true,
        "showPercentChange": false,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}
      }
    },
    {
      "id": 5,
      "type": "timeseries",
      "title": "Flows by verdict",
      "description": "What the policies say of the flows.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 4, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (verdict) (rate(netaudit_flows_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{verdict}}"
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
      "title": "Denied flows by what became of them",
      "description": "reached: it passed. stopped: a filter of the node dropped it. rejected and no-answer: it did not get through, or nobody listened.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 4, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (reach) (rate(netaudit_flows_total{job=~\"$job\", instance=~\"$instance\", verdict=\"denied\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{reach}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 7,
      "type": "state-timeline",
      "title": "Enforcement",
      "description": "Whether policies are enforced, by node and direction, as learnt from what became of denied flows.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 12, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (instance, direction, state) (netaudit_enforcement{job=~\"$job\", instance=~\"$instance\"} == 1)",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{instance}} {{direction}}: {{state}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "showValue": "auto",
        "rowHeight": 0.9,
        "mergeValues": true,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"}
      }
    },
    {
      "id": 8,
      "type": "timeseries",
      "title": "Flows without a verdict",
      "description": "By what was missing; never guessed.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 12, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (reason) (rate(netaudit_unknown_flows_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{reason}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 9,
      "type": "timeseries",
      "title": "How long new pods stay open",
      "description": "95 of 100 new pods were closed by the enforcer within this time.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 20, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "histogram_quantile(0.95, sum by (direction, le) (rate(netaudit_pod_start_exposure_seconds_bucket{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval])))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{direction}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "s"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 10,
      "type": "timeseries",
      "title": "How long policy changes take",
      "description": "95 of 100 changes were enforced within this time.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 20, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "histogram_quantile(0.95, sum by (direction, le) (rate(netaudit_policy_change_exposure_seconds_bucket{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval])))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{direction}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "s"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 11,
      "type": "timeseries",
      "title": "Open connections",
      "description": "At the latest look, by what the policies say of them now.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 28, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (direction, verdict) (netaudit_open_connections{job=~\"$job\", instance=~\"$instance\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{direction}} {{verdict}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    },
    {
      "id": 12,
      "type": "timeseries",
      "title": "Suspected blocks",
      "description": "Allowed flows that something seems to have stopped, by source; what the other end's policies deny is not among them.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 28, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (source_namespace, source_workload) (rate(netaudit_suspected_blocks_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{source_namespace}}/{{source_workload}}"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "cps"}, "overrides": []},
      "options": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}
      }
    }
  ]
}
) satisfies Checked;
