"""WordPiece, BERT's tokenizer (Devlin et al. 2019), out of a vocab.txt: a token a line, its id the line's number."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text.building import around
from anyformer.text.folder import Folder
from anyformer.text.tokenizer import Tokenizer

#: The kinds of tokenizer whose vocab.txt is BERT's; other ones mean other things by that name.
_KINDS = "bert distilbert electra mobilebert convbert squeezebert layoutlm retribert"
ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def read(folder: Folder) -> Tokenizer:
    """The tokenizer of a directory with a vocab.txt."""
    folder.style("vocab.txt", dict.fromkeys(_KINDS.split(), True), "bert")
    lines = folder.text("vocab.txt").removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): id for id, line in enumerate(lines)}
    roles = folder.roles(ROLES, vocabulary)
    if (unknown := {**ROLES, **roles}["unk_token"]) not in vocabulary:
        raise TextError(
            f"{folder.path / 'vocab.txt'} has no token '{unknown}' for unknown words; it is no WordPiece vocabulary"
        )
    lowercase = folder.flag("do_lower_case", True)
    backend = word_piece(
        vocabulary,
        roles,
        lowercase=lowercase,
        strip_accents=folder.flag("strip_accents", lowercase),
        split_han=folder.flag("tokenize_chinese_chars", True),
    )
    return folder.tokenizer(backend, "vocab.txt", roles)


def word_piece(
    vocabulary: Mapping[str, int], roles: Mapping[str, str], lowercase: bool, strip_accents: bool, split_han: bool
) -> Backend:
    """A WordPiece tokenizer with BERT's rules; `roles` name its special tokens."""
    backend = Backend(models.WordPiece(dict(vocabulary), unk_token=roles["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_han
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in roles.values() if token in vocabulary]
    )
    begin, end = roles.get("cls_token"), roles.get("sep_token")
    if begin in vocabulary and end in vocabulary:
        backend.post_processor = around(vocabulary, begin, end, second=("$B", end))
    return backend
