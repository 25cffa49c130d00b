"""A look inside a model as it reads a text: what every layer would answer, where heads look, and a page of it all."""

from anyformer.inspection.looking.look import Look, look
from anyformer.inspection.looking.page import write_page

__all__ = ["Look", "look", "write_page"]
