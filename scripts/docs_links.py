"""mkdocs' hook for links that leave docs/: on the site, which has only docs/, they become plain text."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace `[text](../path)` by text and, where the text does not have it, the path in the repository."""
    depth = page.file.src_uri.count("/") + 1

    def plain(link: re.Match[str]) -> str:
        text, path = link[1], link[2]
        if path.count("../") < depth:
            return link[0]
        name = path.replace("../", "")
        return text if name in text or name.rsplit("/", 1)[-1] in text else f"{text} (`{name}`)"

    return _OUTSIDE.sub(plain, markdown)
