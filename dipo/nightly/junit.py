"""A night as JUnit XML, which every CI server shows: a testcase for each job."""

from __future__ import annotations

import socket
from xml.etree import ElementTree

from dipo.nightly.result import JobResult, Status, printable
from dipo.nightly.summary import Row, Summary


def junit_xml(summary: Summary) -> bytes:
    """Return the document: failed gates are failures, broken jobs errors, those that were not run skipped."""
    counts = {
        "tests": str(len(summary.rows)),
        "failures": str(summary.count(Status.FAILED)),
        "errors": str(summary.count(Status.BROKEN)),
        "skipped": str(summary.count(Status.NOT_RUN)),
        "time": f"{summary.seconds:.3f}",
    }
    suites = ElementTree.Element("testsuites", {"name": "dipo.nightly", **counts})
    # The schema knows no zone: the time is UTC.
    when = summary.started.partition("+")[0]
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        {"name": summary.name, **counts, "timestamp": when, "hostname": printable(socket.gethostname())},
    )
    for row in summary.rows:
        _add_case(suite, row)
    if summary.problems:
        ElementTree.SubElement(suite, "system-err").text = printable("\n".join(summary.problems))
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _add_case(suite: ElementTree.Element, row: Row) -> None:
    result = row.result
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {"name": result.name, "classname": f"dipo.{printable(result.model)}", "time": f"{result.seconds:.3f}"},
    )
    sentences = printable("; ".join(result.failures))
    match result.status:
        case Status.FAILED:
            names = ", ".join(gate.gate for gate in result.gates if not gate.passed)
            _add(case, "failure", message=sentences, kind=names, text="\n".join(result.failures))
        case Status.BROKEN:
            _add(case, "error", message=sentences, kind="broken", text="\n".join(result.log_tail) or sentences)
        case Status.NOT_RUN:
            ElementTree.SubElement(case, "skipped", {"message": sentences})
    ElementTree.SubElement(case, "system-out").text = printable(_told(result, row))


def _add(case: ElementTree.Element, tag: str, *, message: str, kind: str, text: str) -> None:
    ElementTree.SubElement(case, tag, {"message": message, "type": kind}).text = printable(text)


def _told(result: JobResult, row: Row) -> str:
    lines = [f"options: {' '.join(result.options)}", f"folder: {result.folder}"]
    lines += [gate.sentence for gate in result.gates]
    return "\n".join(lines if row.comparison is None else [*lines, row.comparison.sentence])
