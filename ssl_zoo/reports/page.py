"""What all pages share: their look, and the frame of a page that stands alone."""

import html

STYLE = """\
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #22313f; background: #f8f9fa; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 12px; }
.verdict { font-size: 16px; margin: 4px 0 20px; } .bad { color: #9e2a2b; font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 20px; }
.card { background: #fff; border: 1px solid #e9ecef; border-radius: 8px; padding: 12px 18px; min-width: 128px; }
.card b { display: block; font-size: 25px; color: #2a6f97; } .card.plain b { color: #6c757d; }
section { background: #fff; border: 1px solid #e9ecef; border-radius: 8px; padding: 18px 20px; margin-bottom: 18px; }
img { max-width: 100%; display: block; } p.note { color: #6c757d; font-size: 13.5px; margin: 8px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td { padding: 5px 14px 5px 0; border-bottom: 1px solid #f1f3f5; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: #6c757d; white-space: nowrap; width: 1%; }
pre { background: #22313f; color: #f8f9fa; padding: 12px 16px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page; `body` is HTML, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}{style}</style></head><body><main>\n{body}\n</main>"
        + (f"<script>\n{script}</script>" if script else "")
        + "</body></html>\n"
    )
