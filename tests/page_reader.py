"""What a browser would build of a page, without a browser."""

from html.parser import HTMLParser

from hf_longctx.measure import page, runs


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text between."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self._inside):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [attributes["aria-labelledby"] for attributes in self.all("section")]


def read(folder, overlay=()):
    return Reader(page.render(runs.read(folder), overlay))
