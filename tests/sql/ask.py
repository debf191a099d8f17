"""Runs SQL files on one engine: `ask.py ENGINE STORE SINCE UNTIL RULES VIEWS,… QUESTION…`; prints a JSON object of answers by file.

An answer is its columns and rows; times are ISO 8601 in UTC, numbers of any width are numbers.
"""

import datetime
import decimal
import json
import pathlib
import sys

UTC = datetime.timezone.utc


def plain(value):
    if isinstance(value, datetime.datetime):
        # Spark's are in the process's own zone, which is UTC here.
        at = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if isinstance(value, decimal.Decimal):
        return int(value)
    return value


class DuckDb:
    def __init__(self):
        import duckdb

        self.connection = duckdb.connect()

    def run(self, statement):
        self.connection.execute(statement)

    def ask(self, question):
        answer = self.connection.execute(question)
        return [column[0] for column in answer.description], answer.fetchall()


class ClickHouse:
    def __init__(self):
        from chdb import session

        self.session = session.Session()

    def run(self, statement):
        self.session.query(statement)

    def ask(self, question):
        text = str(self.session.query(question, "JSONCompact"))
        answer = json.loads(text)
        columns = answer["meta"]

        def value(column, value):
            if value is not None and "DateTime64" in column["type"]:
                return datetime.datetime.fromisoformat(value)
            if value is not None and "Int64" in column["type"]:
                return int(value)
            return value

        rows = [[value(*pair) for pair in zip(columns, row)] for row in answer["data"]]
        return [column["name"] for column in columns], rows


class Spark:
    def __init__(self):
        from pyspark.sql import SparkSession

        self.session = (
            SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.catalogImplementation", "in-memory")
            .getOrCreate()
        )

    def run(self, statement):
        self.session.sql(statement)

    def ask(self, question):
        answer = self.session.sql(question)
        return answer.columns, answer.collect()


def statements(path, places):
    lines = pathlib.Path(path).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("--"))
    for place, value in places.items():
        text = text.replace("{" + place + "}", value)
    return [part for part in text.split(";\n") if part.strip(" \n;")]


def main():
    engine, store, since, until, rules, views, *questions = sys.argv[1:]
    places = {"STORE": store, "SINCE": since, "UNTIL": until, "RULES": rules}
    engine = {"duckdb": DuckDb, "clickhouse": ClickHouse, "spark": Spark}[engine]()
    for path in views.split(","):
        for statement in statements(path, places):
            engine.run(statement.rstrip().rstrip(";"))
    answers = {}
    for path in questions:
        [question] = statements(path, places)
        columns, rows = engine.ask(question.rstrip().rstrip(";"))
        answers[pathlib.Path(path).stem] = {
            "columns": columns,
            "rows": [[plain(value) for value in row] for row in rows],
        }
    json.dump(answers, sys.stdout)


main()
