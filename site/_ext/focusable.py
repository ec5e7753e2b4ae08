"""What scrolls sideways takes the focus, so that the arrow keys can scroll it."""

SCROLLS = {
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def add_focus(app, page, template, context, doctree):
    for tag, focusable in SCROLLS.items():
        context["body"] = context.get("body", "").replace(tag, focusable)


def setup(app):
    app.connect("html-page-context", add_focus)
    return {"parallel_read_safe": True}
