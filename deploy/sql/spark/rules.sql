-- The rules that agents know, for Spark: from what `netaudit usage --output rows` wrote, in the place of {RULES}.
CREATE OR REPLACE TEMPORARY VIEW usage_rows (
    rule STRUCT<kind: STRING, namespace: STRING, name: STRING, direction: STRING, hash: STRING>,
    until BIGINT, current BOOLEAN, summary STRING
) USING json OPTIONS (path '{RULES}');

CREATE OR REPLACE TEMPORARY VIEW rules AS
SELECT concat(concat_ws('/', rule.kind, nullif(rule.namespace, ''), rule.name), '#', rule.hash) AS rule,
       rule.direction AS direction, concat_ws('/', rule.kind, nullif(rule.namespace, ''), rule.name) AS policy,
       max_by(summary, until) AS summary, max_by(current, until) AS is_current
FROM usage_rows
-- The other lines of such a file are of runs, not of rules.
WHERE rule IS NOT NULL
GROUP BY ALL;
