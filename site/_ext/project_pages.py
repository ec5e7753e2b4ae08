"""Pages of the repository as pages of the site: read where they are, so that they exist once.

`project_pages` in conf.py says which: a page of the site, and the file that is its text. The page's
own file holds nothing. A link to a file that is a page of the site leads there; a link to any other
file of the repository becomes the file's name.
"""

import os.path
import re
from pathlib import Path

LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<file>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def read(app, docname, source):
    pages = app.config.project_pages
    if docname not in pages:
        return
    root, file = Path(app.confdir).parent, pages[docname]
    app.env.note_dependency(str(root / file))
    folder, shown = os.path.dirname(file), {file: page for page, file in pages.items()}

    def link(found):
        target = os.path.normpath(os.path.join(folder, found["file"])).replace(os.sep, "/")
        if page := shown.get(target):
            return f"[{found['text']}](/{page}.md{found['anchor'] or ''})"
        if not (root / target).exists():
            raise FileNotFoundError(f"{file} links to a file that exists: got {target}")
        return found["text"] if "`" in found["text"] else f"{found['text']} (`{target}`)"

    source[0] = LINK.sub(link, (root / file).read_text("utf-8"))


def setup(app):
    app.add_config_value("project_pages", {}, "env")
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
