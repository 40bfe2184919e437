"""Pictures of coloured shapes, their captions, and tiny LLaVA models over a vocabulary of words."""

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip import CLIPImageProcessorPil

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40), "white": (250, 250, 250)}
SHAPES = ("square", "circle", "triangle")
WORDS = ("USER:", "ASSISTANT:", "what", "is", "here", "a", "on", "the", "left", "right", "and", "with", "of", "it", *COLOURS, *SHAPES)
SPECIAL = ("<unk>", "<s>", "</s>")
SIDE, PATCH = 32, 8
ASKED = "USER: <image> what is here ASSISTANT:"


def scene(number: int) -> tuple[Image.Image, str]:
    """Two shapes side by side, and what one would say of them."""
    choose = random.Random(number)
    image = Image.new("RGB", (SIDE, SIDE), (10, 10, 10))
    draw = ImageDraw.Draw(image)
    said = []
    for left in (0, SIDE // 2):
        colour, shape = choose.choice(list(COLOURS)), choose.choice(SHAPES)
        box = (left + 2, 8, left + SIDE // 2 - 3, 8 + SIDE // 2 - 5)
        if shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        elif shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=COLOURS[colour])
        said.append(f"a {colour} {shape} on the {'left' if not left else 'right'}")
    return image, " and ".join(said)


def tokenizer(picture: bool = True) -> PreTrainedTokenizerFast:
    """Words, one token each; with the picture's among the added ones, or without it."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if picture:
        words.add_special_tokens([AddedToken("<image>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


IMAGE_TOKEN = len(SPECIAL) + len(WORDS)


def llava(seed: int, layers: int = 2, hidden: int = 32, vision_layers: int = 2, **changes: object) -> LlavaForConditionalGeneration:
    """A random tiny model in eval mode."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            initializer_range=0.1,
        ),
        text_config=LlamaConfig(
            vocab_size=IMAGE_TOKEN + 1,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        **{"image_token_id": IMAGE_TOKEN, "vision_feature_layer": -1, **changes},
    )
    return LlavaForConditionalGeneration(config).eval()


def save(model: torch.nn.Module, folder: Path, picture: bool = True) -> Path:
    """Model, tokenizer and preprocessor in one folder, as on the hub."""
    model.save_pretrained(folder)
    tokenizer(picture).save_pretrained(folder)
    if picture:
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_scenes(folder: Path, numbers: range) -> Path:
    """A folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        scene(number)[0].save(folder / f"scene-{number:04}.png")
    return folder


def train(model: LlavaForConditionalGeneration, steps: int, numbers: range, batch: int = 32, rate: float = 3e-3) -> float:
    """Teach it the captions; the last loss."""
    words, processor = tokenizer(), CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    rows = model.config.vision_config.image_size // model.config.vision_config.patch_size
    asked = words.encode(ASKED.replace("<image>", " ".join(["<image>"] * rows * rows)))
    scenes = [scene(n) for n in numbers]
    pixels = processor(images=[image for image, _ in scenes], return_tensors="pt")["pixel_values"]
    answers = [[*words.encode(text), words.eos_token_id] for _, text in scenes]
    ids = torch.tensor([asked + answer for answer in answers])
    labels = ids.clone()
    labels[:, : len(asked)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        pick = torch.randint(len(scenes), (batch,), generator=generator)
        loss = model(input_ids=ids[pick], pixel_values=pixels[pick], labels=labels[pick]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()
