"""Documents to ids: a text has one column, `tokens`; a record has as many as its objective reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from anyformer.data.documents import Document

if TYPE_CHECKING:
    from anyformer.text import Tokenizer

#: Texts longer than this many characters are tokenised in parts of whole lines, so that memory stays bounded.
PART = 1 << 20
#: How many parts are handed to the tokenizer at once, and how many records; it spreads them over the cores.
PARTS_AT_ONCE, RECORDS_AT_ONCE = 32, 1024


@dataclass(frozen=True)
class EncodedPart:
    """The ids of a document or of a part of one, by column: its split, whether a document begins here, its bytes of
    UTF-8. A document without columns is left out, and counted."""

    columns: Mapping[str, Sequence[int]]
    split: str
    is_first: bool
    bytes: int


#: Turns documents into ids.
Encode = Callable[[Iterable[Document]], Iterator[EncodedPart]]


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[EncodedPart]:
    """Tokenise texts in order. A document begins with the tokenizer's beginning-of-text token and ends with its
    end-of-text token, where it has them; so all of its text is predicted, and so is its end."""
    begins = [tokenizer.bos] if tokenizer.bos is not None else []
    ends = [tokenizer.eos] if tokenizer.eos is not None else []
    parts = ((document.split, *part) for document in documents for part in _parts(document))
    while batch := list(islice(parts, PARTS_AT_ONCE)):
        encoded = tokenizer.encode_batch([text for _, text, _, _ in batch], special=False)
        for (split, text, is_first, is_last), ids in zip(batch, encoded, strict=True):
            whole = (begins if is_first else []) + ids + (ends if is_last else [])
            yield EncodedPart({"tokens": whole}, split, is_first, len(text.encode("utf-8")))


def encode_records(
    documents: Iterable[Document], encode: Callable[[Sequence[Document]], Sequence[Mapping[str, Sequence[int]]]]
) -> Iterator[EncodedPart]:
    """Tokenise records in order by `encode`, which gives the columns of each; none for one that is to be left out.
    Their bytes are those of their fields as JSON."""
    documents = iter(documents)
    while batch := list(islice(documents, RECORDS_AT_ONCE)):
        for document, columns in zip(batch, encode(batch), strict=True):
            size = len(json.dumps(document.fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            yield EncodedPart(columns, document.split, True, size)


def _parts(document: Document) -> Iterator[tuple[str, bool, bool]]:
    """A text in parts of whole lines: (part, does it begin the document, does it end it)."""
    text, begin = document.text, 0
    while begin < len(text):
        end = text.find("\n", begin + PART) + 1 or len(text)
        yield text[begin:end], document.begins and begin == 0, document.ends and end == len(text)
        begin = end
