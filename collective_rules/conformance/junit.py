"""A conformance run as JUnit XML, which CI systems show: two test cases of each op."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from collective_rules.conformance.results import Conformance, Failure, OpResult
from collective_rules.conformance.summary import failing_title, headline

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def junit(found: Conformance) -> str:
    r"""Return the run as XML.

    - A case "OP legal calls" for each op, and "OP declared dtypes" where a table is held against the backend.
    - An op that is not supported, was left out, or fails as expected is skipped, with the reason.
    - A run that ended early is an error.

    >>> junit(Conformance("x", None, "2.13.0", (2,), 1, 0, 1.0, 0.5, (), ended="It ended."))[:70]
    '<?xml version="1.0" encoding="UTF-8"?>\n<testsuite name="collective-rul'
    """
    suite = ElementTree.Element("testsuite", name=f"collective-rules conformance of {_text(found.backend)}")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", found.verdict), ("headline", headline(found)), *_noted(found)):
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    for op in found.ops:
        _cases(suite, found, op)
    for name, why in found.left_out.items():
        _skip(_case(suite, found, f"{name} legal calls"), f"left out: {why}")
    if found.ended:
        ElementTree.SubElement(_case(suite, found, "the whole run"), "error", message=_text(found.ended))
    for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    suite.set("time", f"{found.seconds:g}")
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'


def _noted(found: Conformance) -> list[tuple[str, str]]:
    return [("note", note) for note in found.notes]


def _cases(suite: ElementTree.Element, found: Conformance, op: OpResult) -> None:
    case = _case(suite, found, f"{op.op} legal calls")
    properties = ElementTree.SubElement(case, "properties")
    ElementTree.SubElement(properties, "property", name="broken", value=str(op.broken))
    if op.unsupported:
        _skip(case, f"not supported: {op.unsupported}")
        return
    if op.verdict == "not tried":
        _skip(case, "not tried")
    _judge(case, op, [op.failure] if op.failure else [], f"{op.failed} of {op.passed + op.failed} legal calls fail")
    if any(kind.table is not None for kind in op.kinds):
        case = _case(suite, found, f"{op.op} declared dtypes")
        _judge(case, op, op.lies, "the backend takes less than its table says")


def _judge(case: ElementTree.Element, op: OpResult, failures: Sequence[Failure], message: str) -> None:
    if failures and op.expected:
        _skip(case, f"expected failure: {op.expected}")
    elif failures:
        shown = (f"{failing_title(each)}: {each.outcome}\n{each.message}\n\n{each.reproducer}" for each in failures)
        ElementTree.SubElement(case, "failure", message=message).text = _text("\n\n".join(shown))


def _case(suite: ElementTree.Element, found: Conformance, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"conformance.{_text(found.backend)}", name=name)


def _skip(case: ElementTree.Element, why: str) -> None:
    ElementTree.SubElement(case, "skipped", message=_text(why))


def _text(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
