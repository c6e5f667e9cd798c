"""Makes sheet.webp and names.json.gz from the two unpacked packages (versions and licences: README.md):

    python data/emoji/build.py FOLDER_OF_emoji-datasource-google FOLDER_OF_emojibase-data
"""
import gzip
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE, COLUMNS, LEVELS = Path(__file__).parent, 44, 32
CATEGORIES = {"Smileys & Emotion": "表情与情感", "People & Body": "人物与身体", "Component": "组成部分", "Animals & Nature": "动物与自然",
              "Food & Drink": "食物与饮料", "Travel & Places": "旅行与地点", "Activities": "活动", "Objects": "物品", "Symbols": "符号", "Flags": "旗帜"}


def key(code):
    return code.upper().replace("-FE0F", "")  # a variation selector that only some lists write


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def picture(path):
    """(64, 64, 3) bytes on white, 32 evenly spaced levels a channel: white and black stay exact, the sheet halves."""
    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    level = np.round(np.asarray(ground.convert("RGB")) / 255 * (LEVELS - 1))
    return np.round(level / (LEVELS - 1) * 255).astype(np.uint8)


google, emojibase = map(Path, sys.argv[1:])
english, chinese = ({key(e["hexcode"]): e for e in read(emojibase / language / "data.json")} for language in ("en", "zh"))
known = sorted(read(google / "emoji.json"), key=lambda e: english[key(e["unified"])].get("order", 0))  # Unicode's order: like beside like

rows = [[english[k]["emoji"], english[k]["label"], chinese[k]["label"], list(CATEGORIES).index(e["category"]), english[k].get("tags", [])]
        for e, k in ((e, key(e["unified"])) for e in known)]
tiles = np.full((-(-len(known) // COLUMNS) * COLUMNS, 64, 64, 3), 255, np.uint8)
for tile, e in zip(tiles, known):
    tile[:] = picture(google / "img/google/64" / e["image"])
sheet = tiles.reshape(-1, COLUMNS, 64, 64, 3).swapaxes(1, 2).reshape(-1, COLUMNS * 64, 3)

packed = io.BytesIO()
Image.fromarray(sheet).save(packed, "WEBP", lossless=True, quality=100, method=6)
names = json.dumps({"categories": list(CATEGORIES.items()), "emoji": rows}, ensure_ascii=False, separators=(",", ":")).encode()
for name, content in (("sheet.webp", packed.getvalue()), ("names.json.gz", gzip.compress(names, 9, mtime=0))):
    (HERE / name).write_bytes(content)
    print(f"| `{name}` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
