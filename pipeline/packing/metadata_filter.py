"""Filters by metadata: a small, safe expression language over the fields of a JSON object.

``similarity > 0.3 and language in ['en', 'de'] and not general.nsfw``. Names are fields, dots go deeper, a
field that is absent is None and makes every comparison but ``==``, ``!=`` and ``in`` false. Python's own
parser reads the expression; nothing of it is ever evaluated by Python.
"""

import ast
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from schemas.mixture import MixtureError

Expression = Callable[[Mapping[str, Any]], Any]
ORDERED = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
OTHER = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda left, right: right is not None and left in right,
    ast.NotIn: lambda left, right: right is None or left not in right,
}


def parse_expression(text: str, where: str) -> Expression:
    """A function from metadata to the expression's value.

    Raises:
        MixtureError: naming ``where``, if the text is no such expression.
    """
    try:
        return _build(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise MixtureError(f"{where}: {text!r} is no filter expression: {error}") from error


def field_names(text: str) -> set[str]:
    """Names of the fields at the top that an expression refers to."""
    return {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}


def read_metadata(metadata: str | None) -> Mapping[str, Any]:
    """The object that a document's metadata holds; empty where it is absent, no object or not to be read.

    Python reads no number of more than 4,300 digits and no thousand brackets within each other.
    """
    try:
        value = json.loads(metadata) if metadata else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _build(node: ast.expr) -> Expression:
    if isinstance(node, ast.BoolOp):
        return _build_bool(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        operand = _build(node.operand)
        return lambda fields: not operand(fields)
    if isinstance(node, ast.Compare):
        return _build_comparison(node)
    if isinstance(node, ast.Name):
        name = node.id
        return lambda fields: fields.get(name)
    if isinstance(node, ast.Attribute):
        owner, name = _build(node.value), node.attr
        return lambda fields: owned.get(name) if isinstance(owned := owner(fields), dict) else None
    try:
        constant = ast.literal_eval(node)  # numbers, strings, lists of them
    except ValueError:
        raise ValueError(f"'{ast.unparse(node)}' is no field, number, text, list or comparison") from None
    return lambda fields: constant


def _build_bool(node: ast.BoolOp) -> Expression:
    parts = [_build(value) for value in node.values]
    if isinstance(node.op, ast.And):
        return lambda fields: all(part(fields) for part in parts)
    return lambda fields: any(part(fields) for part in parts)


def _build_comparison(node: ast.Compare) -> Expression:
    operands = [_build(operand) for operand in (node.left, *node.comparators)]
    comparisons = [_comparison(kind) for kind in node.ops]

    def compare(fields: Mapping[str, Any]) -> bool:
        values = [operand(fields) for operand in operands]
        return all(
            comparison(left, right)
            for comparison, left, right in zip(comparisons, values[:-1], values[1:], strict=True)
        )

    return compare


def _comparison(kind: ast.cmpop) -> Callable[[Any, Any], bool]:
    function = (ORDERED | OTHER).get(type(kind))
    if function is None:
        raise ValueError(f"{type(kind).__name__} is not among < <= > >= == != in")

    def compare(left: Any, right: Any) -> bool:
        try:
            return bool(function(left, right))
        except TypeError:  # absent, a text against a number, in something that holds nothing
            return isinstance(kind, ast.NotIn)

    return compare
