"""cache_schema.md as data: its tables, the values of its expressions for a schema, and its example."""

import math
from pathlib import Path
from types import SimpleNamespace

DOCUMENT = Path(__file__).parents[2] / "cache_schema.md"


def read_tables(text):
    """Return every table of a document as {(heading, first column's name): list of {column: cell}}."""
    tables, heading, block = {}, "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
            continue
        if block:
            columns, _, *rows = block
            tables[heading, columns[0]] = tables.get((heading, columns[0]), []) + [
                dict(zip(columns, row, strict=True)) for row in rows
            ]
            block = []
        if line.startswith("#"):
            heading = line.lstrip("# ").split(". ")[-1]
    return tables


def symbols(tables, schema, units):
    """Return the value of every symbol of section 4 for a schema, and what its encoding's row says."""
    values = schema.model_dump(mode="json")
    names = {
        key: SimpleNamespace(**value) if isinstance(value, dict) else value for key, value in values.items()
    }
    names |= {"units": units, "len": len, "ceil": math.ceil, "floor": math.floor}
    (encoding,) = [row for row in tables["Encodings", "Encoding"] if row["Encoding"] == schema.encoding]
    names |= {"dtype": encoding["Dtype"], "channels_per_value": evaluate(encoding["channels_per_value"], {})}
    for row in tables["Arrays", "Symbol"]:
        names[row["Symbol"]] = evaluate(row["Value"], names)
    return names


def evaluate(expression, names):
    """Evaluate an expression of the document."""
    return eval(expression, {"__builtins__": {}}, names)


def dimensions(cell, names):
    """Evaluate a list of sizes, such as `rows, T, D`; None for `none`."""
    return None if cell == "none" else tuple(evaluate(part, names) for part in cell.split(","))


def described_arrays(tables, schema, units):
    """Return what the document says of the arrays of a schema: {name: (shape, dtype, inner chunk, shard)}."""
    names, arrays = symbols(tables, schema, units), {}
    for row in tables["Arrays", "Array"]:
        if row["Present"].startswith("if ") and not evaluate(row["Present"].removeprefix("if "), names):
            continue
        shape, chunk, shard = (dimensions(row[column], names) for column in ("Shape", "Inner chunk", "Shard"))
        dtype = names["dtype"] if row["Dtype"] == "by encoding" else row["Dtype"]
        for level in schema.levels if "LL" in row["Array"] else (None,):
            name = row["Array"] if level is None else row["Array"].replace("LL", f"{level:02d}")
            arrays[name] = (shape, dtype, chunk, shard)
    return arrays


def example(text):
    """Return the names that the document's example defines, having run it."""
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, "cache_schema.md", "exec"), names)
    return names
