"""From people's files to rows of token ids: sources, tokenised corpora, packing, and the order of batches."""

from anyformer.data.corpus import Column, Corpus, open_corpus, read_manifest
from anyformer.data.documents import Document, Sources, read_documents
from anyformer.data.files import read_text
from anyformer.data.loader import Examples, Loader, spread
from anyformer.data.packing import NO_TARGET, Record, Records, Window, Windows
from anyformer.data.shards import write_corpus
from anyformer.data.sources import find_files
from anyformer.data.tokens import Encode, EncodedPart, encode_documents, encode_records

__all__ = [
    "NO_TARGET",
    "Column",
    "Corpus",
    "Document",
    "Encode",
    "EncodedPart",
    "Examples",
    "Loader",
    "Record",
    "Records",
    "Sources",
    "Window",
    "Windows",
    "encode_documents",
    "encode_records",
    "find_files",
    "open_corpus",
    "read_documents",
    "read_manifest",
    "read_text",
    "spread",
    "write_corpus",
]
