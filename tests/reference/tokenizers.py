"""Small tokenizers of the kinds that there are: bytes, pieces with a token per byte for the rest, words, and letters."""

from itertools import product
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Grüße, 你好 and 👩‍💻 naïve café — done.", "the the then 你你 👍👍 ééé", "  indented\n\tand tabs\n"]
SPECIAL = ("<s>", "</s>")


def of_bytes() -> Any:
    """Byte-level BPE, as of GPT-2 and Llama 3: any bytes may stand in one token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[1])


def of_pieces() -> Any:
    """Pieces as of Llama 2: a space is written before every text, and dropped before it again; other characters are bytes."""
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehinotũ", "▁the", "▁a", "th", "é"]
    merges = [("t", "h")]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token=SPECIAL[0], eos_token=SPECIAL[1])


def of_words() -> Any:
    """Whole words, which are joined by spaces."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(60))])}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", bos_token=SPECIAL[0], eos_token=SPECIAL[1])


def of_letters(size: int, letters: str = "abcdef", special: tuple[str, ...] = ()) -> Any:
    """Tokens of one to three letters, without any spaces: a stop string begins and ends anywhere in them. The `special` ones are the first."""
    strings = ("".join(found) for length in (1, 2, 3) for found in product(letters, repeat=length))
    tokens = [*special, *strings][:size]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=list(special))


ALL = {"bytes": of_bytes, "pieces": of_pieces, "words": of_words, "letters": lambda: of_letters(100)}
