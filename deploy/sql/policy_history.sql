-- What a policy said at the end of the window, as each node's agent knew it: since when, and its text as JSON; `deleted` where it was gone.
-- Of each node the run counts that listed all policies of the kind last. No row: that run knew no such policy.
-- In the place of 'NetworkPolicy' (twice), 'shop' and 'web' goes the policy; one without a namespace has none: namespace IS NULL.
WITH listed AS (
    SELECT node, run, min(time) AS listed_at
    FROM objects
    WHERE kind = 'NetworkPolicy' AND verb = 'listed'
    GROUP BY node, run
), runs AS (
    SELECT node, run, row_number() OVER (PARTITION BY node ORDER BY listed_at DESC, run DESC) AS place
    FROM listed
), said AS (
    SELECT objects.node AS node, objects.time AS since, objects.verb AS verb, objects.resource_version AS resource_version,
           objects.content AS content,
           row_number() OVER (PARTITION BY objects.node ORDER BY objects.sequence DESC) AS place
    FROM objects
    JOIN runs ON objects.node = runs.node AND objects.run = runs.run AND runs.place = 1
    WHERE objects.kind = 'NetworkPolicy' AND objects.namespace = 'shop' AND objects.name = 'web'
)
SELECT node, since, verb, resource_version, content
FROM said
WHERE place = 1
ORDER BY node;
