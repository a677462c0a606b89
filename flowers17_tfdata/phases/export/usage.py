"""The part of the model card that says how to call each file."""

from __future__ import annotations

from collections.abc import Sequence

_SAVED_MODEL = """
`saved_model`: files in (JPEG, PNG, BMP, GIF), of any size; decoding, the
camera's orientation, resizing and the names are inside. It needs TensorFlow
alone.

```python
import tensorflow as tf

serve = tf.saved_model.load("saved_model").signatures["serving_default"]
photo = open("photo.jpg", "rb").read()
answer = serve(image_bytes=tf.constant([photo]))
print(answer["labels"][0].numpy(), answer["scores"][0].numpy())
```

`python serve.py` serves it on this machine; TensorFlow Serving does with
`-v "$PWD/saved_model:/models/classifier/1" -e MODEL_NAME=classifier`. Both take

```
POST /v1/models/classifier:predict
{"instances": [{"b64": "THE FILE IN BASE64"}]}
```"""

_KERAS = """
`model.keras`: preprocessed images in, logits out; to train on, or for this
program's `--model`.

```python
import keras

model = keras.models.load_model("model.keras", compile=False)
```"""

_PIXELS = """
The others take pixels: float32 `[1, SIZE, SIZE, 3]`, RGB, in [0, 255] (the
backbone's own scaling is inside); probabilities come out, float32
`[1, NUM_CLASSES]`, in the order of `labels.txt`.

```python
import numpy as np
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
photo = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
images = np.float32(photo)[np.newaxis]
```"""

_TFLITE = """
`FILE`, TensorFlow Lite:

```python
from ai_edge_litert.interpreter import Interpreter

classify = Interpreter("FILE").get_signature_runner()
probabilities = classify(image=images)["probabilities"]
```"""

_ONNX = """
`model.onnx`, batches of any size:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(probabilities,) = session.run(["probabilities"], {"image": images})
```"""


def make_section(
    class_names: Sequence[str], image_size: int, files: Sequence[str]
) -> str:
    """Returns the section, Markdown.

    Args:
      class_names: in the order of the class ids.
      image_size: height and width of what the network sees, pixels.
      files: names of the exported files.
    """
    tflite = [name for name in files if name.endswith(".tflite")]
    parts = ["## How to call it"]
    if "saved_model" in files:
        parts.append(_SAVED_MODEL)
    if "model.keras" in files:
        parts.append(_KERAS)
    if tflite or "model.onnx" in files:
        pixels = _PIXELS.replace("SIZE", str(image_size))
        parts.append(pixels.replace("NUM_CLASSES", str(len(class_names))))
    parts += [_TFLITE.replace("FILE", name) for name in tflite]
    if "model.onnx" in files:
        parts.append(_ONNX)
    return "\n\n".join(part.strip() for part in parts)
