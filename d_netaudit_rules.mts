import type {Checked} from "./schema.mjs"; (
{
  "uid": "netaudit-rules",
  "title": "netaudit / Rule usage",
  "description": "Which declared allowances are used, and how good the evidence is.",
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
        "label": "Policy namespace",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(netaudit_rule_info{job=~\"$job\"}, namespace)", "refId": "namespace"},
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
      "title": "Rules",
      "description": "Rules of policies that select pods, as the agents know them.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "count(max by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_info{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}))",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
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
      "title": "Unused",
      "description": "Rules that nothing uses, where the evidence suffices to say so.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 6, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "count(max by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_unused{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}) == 1) or vector(0)",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
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
      "title": "Not matched yet",
      "description": "Rules without a match since their agent started. Evidence may be missing: this is not the same as unused.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "count(sum by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_matches_total{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}) == 0) or vector(0)",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
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
      "title": "Lowest coverage",
      "description": "Observed by existing pod-seconds, of the rule that is covered worst.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 18, "y": 0, "w": 6, "h": 4},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min(netaudit_rule_coverage_ratio{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "instant": true,
          "range": false,
          "format": "time_series"
        }
      ],
      "fieldConfig": {"defaults": {"unit": "percentunit"}, "overrides": []},
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
      "type": "table",
      "title": "Rules",
      "description": "Matches since the agents started, those of this rule alone, the last one, since when the rule is watched and how well. Path is where it stands in its policy today.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 4, "w": 24, "h": 12},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_matches_total{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "B",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_sole_matches_total{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "C",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_last_match_timestamp_seconds{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}) * 1000",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "D",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_observed_since_timestamp_seconds{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}) * 1000",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "E",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "min by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_coverage_ratio{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "F",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (kind, namespace, networkpolicy, direction, rule) (netaudit_rule_unused{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "format": "table",
          "instant": true,
          "range": false
        },
        {
          "refId": "G",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "max by (kind, namespace, networkpolicy, direction, rule, path) (netaudit_rule_info{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "format": "table",
          "instant": true,
          "range": false
        }
      ],
      "fieldConfig": {
        "defaults": {"unit": "short"},
        "overrides": [
          {"matcher": {"id": "byName", "options": "Last match"}, "properties": [{"id": "unit", "value": "dateTimeAsIso"}]},
          {"matcher": {"id": "byName", "options": "Watched since"}, "properties": [{"id": "unit", "value": "dateTimeAsIso"}]},
          {"matcher": {"id": "byName", "options": "Coverage"}, "properties": [{"id": "unit", "value": "percentunit"}]}
        ]
      },
      "options": {"showHeader": true, "cellHeight": "sm"},
      "transformations": [
        {"id": "merge", "options": {}},
        {
          "id": "organize",
          "options": {
            "excludeByName": {"Time": true, "rule": true, "Value #G": true},
            "indexByName": {},
            "renameByName": {
              "Value #A": "Matches",
              "Value #B": "Sole matches",
              "Value #C": "Last match",
              "Value #D": "Watched since",
              "Value #E": "Coverage",
              "Value #F": "Unused"
            }
          }
        }
      ]
    },
    {
      "id": 6,
      "type": "timeseries",
      "title": "Matches by policy",
      "description": "Flows that a rule of the policy allowed.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 0, "y": 16, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (namespace, networkpolicy) (rate(netaudit_rule_matches_total{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"}[$__rate_interval]))",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{namespace}}/{{networkpolicy}}"
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
      "type": "timeseries",
      "title": "What is missing to call a rule unused or not",
      "description": "Rules by what is missing: window, coverage, loss or sensor.",
      "datasource": {"type": "prometheus", "uid": "${datasource}"},
      "gridPos": {"x": 12, "y": 16, "w": 12, "h": 8},
      "targets": [
        {
          "refId": "A",
          "datasource": {"type": "prometheus", "uid": "${datasource}"},
          "expr": "sum by (missing) (netaudit_rule_evidence{job=~\"$job\", instance=~\"$instance\", namespace=~\"$namespace\"})",
          "instant": false,
          "range": true,
          "format": "time_series",
          "legendFormat": "{{missing}}"
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
