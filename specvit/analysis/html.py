"""Markdown to one HTML page that needs no other file, and the filling of a page of the user's own."""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specvit.utils.errors import DataError
from specvit.utils.files import write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #222; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .8rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; } th { min-width: 3.5rem; }
code, pre { background: #f4f4f4; border-radius: 3px; } pre { padding: .6rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } code, pre { background: #262626; } th, td { border-color: #444; }
  img { background: white; }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser loads nothing for the page, from nowhere."""


def as_page(title: str, text: str, figures: Path) -> str:
    """Return markdown as a whole HTML page, with the images that it names, relative to `figures`, inside it.

    It asks for nothing else: links and other images stay text.
    """
    from html import escape

    from markdown_it import MarkdownIt

    images = {f"figures/{path.name}": path.read_bytes() for path in figures.glob("figures/*.png")}

    def image(renderer: object, tokens: Any, index: int, *_: object) -> str:
        alt, source = escape(tokens[index].content), str(tokens[index].attrs["src"])
        if source not in images:  # one that a name or question asks for
            return f"![{alt}]({escape(source)})"
        return f'<img src="data:image/png;base64,{base64.b64encode(images[source]).decode()}" alt="{alt}">'

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])
    reader.add_render_rule("image", image)
    body = reader.render(text).replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html>{head}\n<body>\n{body}</body></html>\n"


def fill(template: Path, values: dict[str, Any], out: Path, figures: dict[str, Path]) -> Path:
    """Write `template` with its {{ names }} filled into `out`, under its own name; raises `DataError`.

    `{{ figure("scaling", "img/one.png") }}` copies a figure to that place beside the page and becomes the path.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    remedy = f"there are {', '.join(values)} and figure(NAME, PATH) of {', '.join(figures)}"
    try:
        page = environment.from_string(template.read_text(encoding="utf-8"))
        text = page.render(**values, figure=_copier(out, figures, template))
    except FileNotFoundError as problem:
        raise DataError("no such file", where=str(template), remedy="--template takes a page of yours") from problem
    except UnicodeDecodeError as problem:
        raise DataError("is no text", where=str(template), remedy="--template takes a page of yours") from problem
    except jinja2.TemplateSyntaxError as problem:
        raise DataError(f"line {problem.lineno}: {problem.message}", where=str(template), remedy=remedy) from problem
    except (jinja2.TemplateError, TypeError) as problem:
        raise DataError(str(problem).rstrip("."), where=str(template), remedy=remedy) from problem
    place = out / template.name
    if place.resolve() == template.resolve():
        raise DataError("would be written over itself", where=str(template), remedy="give another --out")
    write_text(place, text)
    return place


def _copier(out: Path, figures: dict[str, Path], template: Path) -> Callable[[str, str], str]:
    def figure(name: str, place: str) -> str:
        if name not in figures:
            remedy = f"there are {', '.join(figures)}"
            raise DataError(f"there is no figure {name!r}", where=str(template), remedy=remedy)
        target = (out / place).resolve()
        source = figures[name].with_suffix(target.suffix)
        if not source.exists():
            raise DataError(f"no figure ends in {target.suffix!r}", where=str(template), remedy="use .png or .pdf")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return place

    return figure
