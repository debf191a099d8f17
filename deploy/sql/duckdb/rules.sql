-- The rules that agents know, for DuckDB: from what `netaudit usage --output rows` wrote, in the place of {RULES}.
CREATE OR REPLACE VIEW rules AS
SELECT concat_ws('/', rule.kind, nullif(rule.namespace, ''), rule.name) || '#' || rule.hash AS rule,
       rule.direction AS direction, concat_ws('/', rule.kind, nullif(rule.namespace, ''), rule.name) AS policy,
       max_by(summary, until) AS summary, max_by(current, until) AS is_current
FROM read_json('{RULES}', format = 'newline_delimited', columns = {
    rule: 'STRUCT(kind VARCHAR, namespace VARCHAR, name VARCHAR, direction VARCHAR, hash VARCHAR)',
    until: 'BIGINT', current: 'BOOLEAN', summary: 'VARCHAR'})
-- The other lines of such a file are of runs, not of rules.
WHERE rule IS NOT NULL
GROUP BY ALL;
