"""Equations of the pages as MathML, made while the site is built: a browser needs no script for them."""

import html
import re

from latex2mathml.converter import convert

FOUND = re.compile(r'<(span|div) class="arithmatex">\\(?:\(|\[)(.*?)\\(?:\)|\])</\1>', re.DOTALL)
FUNCTION = re.compile(r"<(m[io])>([A-Za-z]{2,})</\1>(?=(<mo[^>]*>(?:\(|\[|&#x00028;|&#x0005B;))?)")
SIGN = re.compile(r"(<mo>(?:=|,|&#x0003D;|&#x0002C;|&#x02190;|&#x02212;|\+)</mo>)<mo>&#x02212;</mo>")


def spaced(made: str) -> str:
    """MathML as TeX would set it: spaces around names of functions, signs close to what they belong to, norms of one height."""

    def function(found: re.Match[str]) -> str:
        return f'<mo form="prefix" lspace="0.17em" rspace="{"0" if found[3] else "0.17em"}">{found[2]}</mo>'

    made = SIGN.sub(r'\1<mo form="prefix">&#x02212;</mo>', FUNCTION.sub(function, made))
    return made.replace("<mo>&#x02016;</mo>", '<mo stretchy="false" lspace="0" rspace="0">&#x02016;</mo>')  # left and right alike


def mathml(found: re.Match[str]) -> str:
    """What pymdownx.arithmatex marked, as MathML; a block for $$...$$, else in its line."""
    latex, block = html.unescape(found[2]).strip(), found[1] == "div"
    made = spaced(convert(latex, display="block" if block else "inline"))
    return f'<div class="equation">{made}</div>' if block else made


def on_page_content(page_html: str, **_: object) -> str:
    return FOUND.sub(mathml, page_html)
