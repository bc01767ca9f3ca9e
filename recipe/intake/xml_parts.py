"""Parses the XML parts of a workbook as a stream, without the traps that XML allows."""

import re
from typing import IO, Iterator, List, Tuple
from xml.etree.ElementTree import Element, XMLParser, XMLPullParser
from xml.parsers import expat

from recipe.core.translation import _
from recipe.intake.cells import UnreadableFile

CHUNK = 1 << 17  # bytes
LONGEST = 1 << 20  # characters of one cell; Excel itself stops at 32,767
BLANK_ROW = re.compile(rb'<row [^<>]*?\br="\d+"[^<>]*?(?:/>|>(?:<c [^<>]*/>)*</row>)')


def _blocks(stream: IO[bytes]) -> Iterator[Tuple[bytes, str]]:
    """The bytes of an XML part, with the namespace of its root as a prefix of tags.

    Refuses a DOCTYPE, whose entities could expand to gigabytes.
    """

    def refuse(*_given: object) -> None:
        raise UnreadableFile(_("its XML declares entities, which no workbook needs"))

    namespaces: List[str] = []
    prolog = expat.ParserCreate(namespace_separator="}")
    prolog.StartDoctypeDeclHandler = refuse
    prolog.StartElementHandler = lambda tag, _attributes: namespaces.append("".join(("{", *tag.rpartition("}")[:2])))
    only_elements, end = True, b""
    for block in iter(lambda: stream.read(CHUNK), b""):
        if not namespaces:
            prolog.Parse(block, False)
        only_elements = only_elements and b"<!" not in end + block  # a comment or CDATA could hold anything
        end = block[-1:]
        if only_elements and b"/>" in block:
            block = BLANK_ROW.sub(b"", block)  # a sheet may hold a million rows that were formatted and never used
        yield block, (namespaces or [""])[0].rstrip("{")


def tree(stream: IO[bytes]) -> Element:
    parser = XMLParser()
    for block, _namespace in _blocks(stream):
        parser.feed(block)
    return parser.close()


def elements(stream: IO[bytes], name: str) -> Iterator[Tuple[Element, str]]:
    """Every element `name` of an XML part, cleared after use, with the prefix of its children's tags."""
    parser = XMLPullParser(("end",))
    waiting = 0  # bytes since the last element
    for block, namespace in _blocks(stream):
        tag = namespace + name
        parser.feed(block)
        waiting += len(block)
        for _event, element in parser.read_events():
            waiting = 0
            if element.tag == tag:
                yield element, namespace
                element.clear()
        if waiting > 8 * LONGEST:
            raise UnreadableFile(_("a cell holds more than {n:,} characters", n=LONGEST))
    parser.close()
