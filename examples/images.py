"""Pictures with classes: train, sample a class, keep the file of each picture.

Run as a script, or cell by cell in an editor that knows `# %%`. A folder of PNG files with one sub-folder a class
opens the same way: protea.open("photos/", size=32).
"""

# %% 8 x 8 digits of 17 grey levels, from scikit-learn.
import protea

data = protea.open("digits")
print(data.space, len(data.train), "training pictures")

# %% A convolutional variational autoencoder, class-conditional because the data have labels.
run = protea.fit("vae", data, budget="300steps", out="runs/example-images", progress="none")

# %% Samples are PIL images. `start` continues a series without drawing any picture twice.
sevens = run.sample(8, label="7")
more = run.sample(8, label="7", start=8)
print(len(sevens), sevens[0].size, sevens[0].mode)

# %% A contact sheet.
from PIL import Image

sheet = Image.new("L", (8 * 34, 2 * 34), 255)
for i, picture in enumerate([*sevens, *more]):
    sheet.paste(picture.convert("L").resize((32, 32)), ((i % 8) * 34, (i // 8) * 34))
sheet.save("runs/example-images/sevens.png")
print("runs/example-images/sevens.png")

# %% Bits per dimension, a lower bound of the likelihood.
print(run.score(sevens).values.mean(), run.score(sevens).unit)
