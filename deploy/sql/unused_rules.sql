-- Which rules (view `rules`) decided no flow in the window. That nothing was seen proves nothing by itself: whether all that could have
-- matched was watched is what `netaudit usage` answers. Also a rule of a cluster-wide policy that passed flows on is told here.
SELECT policy, direction, rule, summary
FROM rules
WHERE is_current AND concat(direction, ' ', rule) NOT IN (SELECT concat(direction, ' ', rule) FROM rule_matches)
ORDER BY policy, direction, rule;
