"""The part of the model card that says how to call each file."""

from __future__ import annotations

from collections.abc import Sequence

_SAVED_MODEL = """
`saved_model`: bytes of JPEG, PNG, BMP or GIF files in; decoding, the camera's
orientation, resizing and names are inside. It needs TensorFlow alone.

```python
import tensorflow as tf

serve = tf.saved_model.load("saved_model").signatures["serving_default"]
answer = serve(image_bytes=tf.constant([open("photo.jpg", "rb").read()]))
print(answer["labels"][0].numpy(), answer["scores"][0].numpy())
```

TensorFlow Serving (`-v "$PWD/saved_model:/models/{name}/1"`) takes

```
POST /v1/models/{name}:predict
{{"instances": [{{"b64": "BASE64 OF THE FILE"}}]}}
```"""

_KERAS = """
`model.keras`: Keras; preprocessed images in, logits out. To train on, or for
this program's `--model`.

```python
import keras

model = keras.models.load_model("model.keras", compile=False)
```"""

_TFLITE = """
`{file}`: pixels in, float32 `[1, {size}, {size}, 3]`, RGB, in [0, 255] (the
backbone's own scaling is inside); probabilities out, float32
`[1, {num_classes}]`, in the order of `labels.txt`.

```python
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = np.float32(photo.resize(({size}, {size}), Image.Resampling.BILINEAR))
classify = Interpreter("{file}").get_signature_runner()
probabilities = classify(image=pixels[np.newaxis])["probabilities"][0]
```"""

_ONNX = """
`model.onnx`: as the TensorFlow Lite files, for batches of any size.

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
    parts = ["## How to call it"]
    if "saved_model" in files:
        parts.append(_SAVED_MODEL.format(name="flowers17"))
    if "model.keras" in files:
        parts.append(_KERAS)
    tflite = [name for name in files if name.endswith(".tflite")]
    if tflite:
        parts.append(
            _TFLITE.format(
                file=tflite[0], size=image_size, num_classes=len(class_names)
            )
        )
    if "model.onnx" in files:
        parts.append(_ONNX)
    return "\n\n".join(part.strip() for part in parts)
