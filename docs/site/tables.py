"""Long names in tables may be broken behind a dot, an underscore or the like, so that columns stay narrow; but for the first column."""

import re

CELL = re.compile(r"(?<=</td>)\s*<td[^>]*>.*?(?=</td>)", re.DOTALL)
CODE = re.compile(r"(?<=<code>).*?(?=</code>)")
END = re.compile(r"([a-z0-9](?:[_./=,]))(?=[A-Za-z0-9])")


def on_post_page(output: str, **_: object) -> str:  # after the pages were indexed for search
    return CELL.sub(lambda cell: CODE.sub(lambda code: END.sub(r"\1<wbr>", code[0]), cell[0]), output)
