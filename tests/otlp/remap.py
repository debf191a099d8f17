"""Runs a program of Vector's `remap` on lines as its source `file` hands them on. stdin: {"program": …, "lines": […]}.

stdout: a line of JSON each: the event, or {"dropped": why}.
"""

import json
import sys

from vrl_python import VRLRuntime

asked = json.load(sys.stdin)
# As text, as Vector's codec writes it: the binding would turn times and nested fields into words of its own.
program = asked["program"] + '\n. = {"told": encode_json(.)}\n'
runtime = VRLRuntime()
runtime.compile(program)
for line in asked["lines"]:
    event = {
        "message": line,
        "file": "/var/log/netaudit/flows.jsonl",
        "host": "node-1",
        "source_type": "file",
        "timestamp": "2000-01-01T00:00:00Z",
    }
    try:
        print(runtime.execute(program, event).processed_event["told"])
    except RuntimeError as error:
        print(json.dumps({"dropped": str(error)}))
