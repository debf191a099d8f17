-- The rules that agents know, for ClickHouse: from what `netaudit usage --output rows` wrote, in the place of {RULES}.
CREATE OR REPLACE VIEW rules AS
SELECT concat(policy, '#', told.hash) AS rule, told.direction AS direction,
       concat(told.kind, '/', if(told.namespace = '', '', concat(told.namespace, '/')), told.name) AS policy,
       argMax(summary, until) AS summary, argMax(current, until) AS is_current
FROM (
    SELECT rule AS told, until, current, summary
    FROM file('{RULES}', JSONEachRow, 'rule Tuple(kind String, namespace String, name String, direction String, hash String),
              until Int64, current Bool, summary String')
    SETTINGS input_format_skip_unknown_fields = 1
)
-- The other lines of such a file are of runs, not of rules.
WHERE told.hash <> ''
GROUP BY ALL;
