# %% [markdown]
# # Convolutional networks, from one sum to ResNet18
#
# This page follows *Dive into Deep Learning* (d2l.ai) with jaxcnn, section by section: chapter 7,
# 8.2 (VGG) and 8.6 (ResNet). It arrives at the same numbers. "d2l" below means that book's code in
# PyTorch.
# The page is made from `docs/walkthrough.py` by `make docs`, which runs every cell; the tests run
# them again and compare what they print.
#
# To open it as a notebook, `pip install jupyterlab` in the environment of jaxcnn, and give
# `jupyter lab docs/walkthrough.ipynb` there; its kernel is that environment's Python.
#
# The networks are trained here for seconds, on a sample of 2,000 images of Fashion-MNIST that comes
# with jaxcnn, so that the page can be run anywhere. `train.py` trains them in full: see README.md.

# %%
import inspect
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from PIL import Image, ImageDraw
from rich.console import Console

import jaxcnn
from jaxcnn.inspect import layer_summary, summary_table

plt.rcParams["figure.dpi"] = 72


def show(images, titles, columns=None, limit=None):
    """Draw gray pictures side by side."""
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    _, axes = plt.subplots(
        rows, columns, figsize=(1.5 * columns, 1.75 * rows), squeeze=False, layout="constrained"
    )
    low, high = (None, None) if limit is None else (-limit, limit)
    for place, image, title in zip(axes.flat, images, titles, strict=True):
        place.imshow(np.asarray(image), cmap="gray", vmin=low, vmax=high)
        place.set_title(title, fontsize=10)
    for place in axes.flat:
        place.set(xticks=[], yticks=[])
    plt.show()


# %% [markdown]
# ## 7.1 Why convolutions
#
# Give a fully connected layer a picture of a million pixels, and let it answer with as many
# numbers: each of them has a weight for every pixel. Two observations about pictures take nearly
# all of those weights away.
#
# - **A boot is a boot wherever it stands** (translation invariance). What is good for finding it in
#   one corner is good in every corner, so one set of weights can serve all positions:
#   $H_{ij} = u + \sum_{a,b} V_{ab}\, X_{i+a,\,j+b}$. The offsets $a$ and $b$ still reach over the
#   whole picture, in both directions: about 2,000 by 2,000 weights.
# - **What is near belongs together** (locality). To tell an edge from a plain surface, one need not
#   look further than some $\Delta$ pixels: $V_{ab} = 0$ beyond.
#
# That is a convolution. Weights, for a picture of 1,000 by 1,000 pixels and $\Delta = 2$:

# %%
pixels, delta = 1000, 2
for name, weights in (
    ("fully connected", pixels**2 * pixels**2),
    ("the same everywhere", (2 * pixels) ** 2),
    ("and local", (2 * delta + 1) ** 2),
):
    print(f"{name:20s} {weights:>17,}")

# %% [markdown]
# One set of weights finds one thing, such as an edge that runs upwards. To find several, a layer
# has several *channels*, and each output channel looks at every input channel:
#
# $$H_{ijd} = u_d + \sum_{a=-\Delta}^{\Delta} \sum_{b=-\Delta}^{\Delta} \sum_c
# V_{abcd}\, X_{i+a,\,j+b,\,c}$$
#
# Early layers see small surroundings. Each layer sees a little more than the one before it, so the
# last ones see the whole picture.

# %% [markdown]
# ## 7.2 Convolutions for images
# ### 7.2.1 Cross-correlation
#
# Lay the kernel on the picture, multiply what lies on each other, add, move on by a pixel. (A
# mathematician's convolution turns the kernel round first. For a kernel that is learned, this makes
# no difference, and nobody does.)

# %%
x = jnp.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
k = jnp.array([[0.0, 1.0], [2.0, 3.0]])
jaxcnn.corr2d(x, k)

# %% [markdown]
# The upper left corner is $0\cdot0 + 1\cdot1 + 3\cdot2 + 4\cdot3 = 19$. Two loops say the same:


# %%
def corr2d_with_loops(x, k):
    h, w = k.shape
    y = np.zeros((x.shape[0] - h + 1, x.shape[1] - w + 1), np.float32)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] = (x[i : i + h, j : j + w] * k).sum()
    return y


corr2d_with_loops(np.asarray(x), np.asarray(k))

# %% [markdown]
# `jaxcnn.corr2d` has no loop: it asks XLA for a convolution, which is compiled for the machine.
#
# ### 7.2.2 A convolutional layer
#
# A layer is an operation and its parameters. In Flax, the module describes them, `init` makes them,
# and `apply` uses them: the parameters are data beside the module, not inside it.

# %%
layer = jaxcnn.Conv2D(kernel_size=(2, 2))
variables = layer.init(jax.random.key(0), x)
print(jax.tree.map(jnp.shape, variables))
layer.apply(variables, x).shape

# %% [markdown]
# ### 7.2.3 Edges
#
# A picture of ones with a bar of zeros, and a kernel that compares each pixel with its right
# neighbour:

# %%
x = jnp.ones((6, 8)).at[:, 2:6].set(0)
x

# %%
k = jnp.array([[1.0, -1.0]])
y = jaxcnn.corr2d(x, k)
y

# %% [markdown]
# 1 where the bar begins, -1 where it ends, 0 elsewhere. Turn the picture on its side, and the
# kernel finds nothing: it looks for vertical edges only.

# %%
jaxcnn.corr2d(x.T, k)

# %% [markdown]
# Drawn, 1 is white, 0 gray and -1 black:

# %%
show(
    [x, y, x.T, jaxcnn.corr2d(x.T, k)],
    ["x", "edges of x", "x on its side", "edges of that"],
    limit=1,
)

# %% [markdown]
# The same on a real picture, with the kernel and with its transpose:

# %%
train = jaxcnn.data.load_fashion_mnist_sample("train")
boot = jnp.asarray(train.images[np.argmax(train.labels == 9), :, :, 0] / 255.0, jnp.float32)
show(
    [boot, jaxcnn.corr2d(boot, k), jaxcnn.corr2d(boot, k.T)],
    ["ankle boot", "vertical edges", "horizontal edges"],
    limit=1,
)

# %% [markdown]
# ### 7.2.4 Learning a kernel
#
# Nobody has to invent the kernel. From the picture and its edges alone, gradient descent finds it:
# ten steps at a learning rate of 0.03. d2l starts from a random kernel and does not print
# which; but as the loss is quadratic, its steps can be followed back from where it ended. It began
# near [0.1103, -0.6266], and from there every number that it prints appears again.

# %%
images, targets = x.reshape(1, 6, 8, 1), y.reshape(1, 6, 7, 1)  # [N, H, W, C]
kernel = jnp.array([0.1103, -0.6266]).reshape(1, 2, 1, 1)  # [kh, kw, I, O]


@jax.value_and_grad
def loss_and_gradient(kernel):
    return ((jaxcnn.conv2d(images, kernel) - targets) ** 2).sum()


for i in range(10):
    loss, gradient = loss_and_gradient(kernel)
    kernel -= 3e-2 * gradient
    if (i + 1) % 2 == 0:
        print(f"epoch {i + 1}, loss {loss:.3f}")

# %%
print(*(f"{weight:.4f}" for weight in kernel.ravel()))

# %% [markdown]
# Nearly [1, -1]. (d2l: losses 4.519, 1.377, 0.485, 0.185, 0.074; kernel 0.9650, -1.0204.)
#
# A difference to note: PyTorch puts the channels before the rows, [N, C, H, W], and jaxcnn after
# the columns, [N, H, W, C], as is usual with JAX; kernels are [kh, kw, input channels, output
# channels].

# %% [markdown]
# ## 7.3 Padding and stride
#
# A kernel of $k$ pixels has $n - k + 1$ places on $n$ pixels, so a picture shrinks with each layer.
# *Padding* puts $p$ zeros on each side; a *stride* of $s$ takes only every $s$-th place:
#
# $$\left\lfloor \frac{n - k + 2p}{s} \right\rfloor + 1$$
#
# ### 7.3.1 Padding


# %%
def output_shape(layer, x):
    """Apply a layer to one picture [H, W]; return the height and width of what comes out."""
    y, _ = layer.init_with_output(jax.random.key(0), x[None, :, :, None])
    return y.shape[1:3]


x = jax.random.uniform(jax.random.key(0), (8, 8))
output_shape(jaxcnn.Conv(1, kernel_size=3, padding=1), x)

# %%
output_shape(jaxcnn.Conv(1, kernel_size=(5, 3), padding=(2, 1)), x)

# %% [markdown]
# ### 7.3.2 Stride

# %%
output_shape(jaxcnn.Conv(1, kernel_size=3, padding=1, strides=2), x)

# %%
output_shape(jaxcnn.Conv(1, kernel_size=(3, 5), padding=(0, 1), strides=(3, 4)), x)

# %% [markdown]
# ### 7.3.4 Exercise: check the last one by hand
#
# Height: $\lfloor (8 - 3 + 0)/3 \rfloor + 1 = 2$. Width: $\lfloor (8 - 5 + 2)/4 \rfloor + 1 = 2$.
# (In d2l's formula, $p$ is the padding of both sides together, so `padding=1` is $p = 2$. With
# $p = 1$ the result would be the same, by rounding.)

# %%
(
    jaxcnn.conv_output_size(8, 3, padding=0, stride=3),
    jaxcnn.conv_output_size(8, 5, padding=1, stride=4),
)

# %% [markdown]
# ## 7.4 Several channels
# ### 7.4.1 Several input channels
#
# One kernel per channel, and the results are added: for a picture [C, H, W] the kernel is
# [C, kh, kw].

# %%
x = jnp.array(
    [
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]],
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
    ]
)
k = jnp.array([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]])
jaxcnn.corr2d_multi_in(x, k)

# %% [markdown]
# ### 7.4.2 Several output channels
#
# One such stack of kernels for each output channel: [O, I, kh, kw].

# %%
k.shape

# %%
k = jnp.stack([k, k + 1, k + 2])
k.shape

# %%
jaxcnn.corr2d_multi_in_out(x, k)

# %% [markdown]
# What a layer costs: each of $h w$ outputs in each of $c_o$ channels takes $k^2$ products in each
# of $c_i$ channels, $h\,w\,c_i\,c_o\,k^2$ in all. A 5 x 5 kernel from 128 to 128 channels on a
# picture of 256 x 256 pixels takes over 53 billion operations, half of them products and half
# sums, for 0.4 million parameters. `layer_summary` counts them (a multiply-add is two operations):

# %%
conv = nn.Sequential([jaxcnn.Conv(128, kernel_size=5, padding=2, use_bias=False)])
(row,) = layer_summary(conv, (1, 256, 256, 128))
print(f"{row.parameters:,} parameters, {2 * row.macs:,} operations")

# %% [markdown]
# ### 7.4.3 A 1 x 1 kernel
#
# It sees no neighbours; it mixes the channels of each pixel with $c_o \times c_i$ weights: a small
# fully connected layer, the same at every pixel, and so one matrix product. What follows it, an
# activation, keeps it from being merged with the next. With it a network changes its number of
# channels cheaply.

# %%
x = jax.random.normal(jax.random.key(1), (3, 3, 3))
k = jax.random.normal(jax.random.key(2), (2, 3, 1, 1))
y1 = jaxcnn.corr2d_multi_in_out_1x1(x, k)
y2 = jaxcnn.corr2d_multi_in_out(x, k)
float(jnp.abs(y1 - y2).sum()) < 1e-6

# %% [markdown]
# ## 7.5 Pooling
# ### 7.5.1 Maximum and average pooling
#
# The same sliding window without parameters. After the maximum over 2 x 2 pixels, a network does
# often not mind whether an edge lies a pixel further to the right.

# %%
x = jnp.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
jaxcnn.pool2d(x, (2, 2))

# %%
jaxcnn.pool2d(x, (2, 2), "avg")

# %% [markdown]
# ### 7.5.2 Padding and stride
#
# Layers move on by a whole window unless told otherwise.

# %%
x = jnp.arange(16.0).reshape(1, 4, 4, 1)
x[0, :, :, 0]


# %%
def nchw(y):
    """Turn [N, H, W, C] into d2l's order, to compare what is printed."""
    return y.transpose(0, 3, 1, 2)


nchw(jaxcnn.max_pool(x, 3))

# %%
nchw(jaxcnn.max_pool(x, 2))

# %%
nchw(jaxcnn.max_pool(x, 3, strides=2, padding=1))

# %%
nchw(jaxcnn.max_pool(x, (2, 3), strides=(2, 3), padding=(0, 1)))

# %% [markdown]
# ### 7.5.3 Several channels
#
# Pooling takes each channel by itself, so their number stays.

# %%
x = jnp.concatenate([x, x + 1], axis=3)
nchw(x)

# %%
nchw(jaxcnn.max_pool(x, 3, strides=2, padding=1))

# %% [markdown]
# ## 7.6 LeNet
# ### 7.6.1 The network
#
# LeNet-5 (LeCun et al., 1998) was built at AT&T Bell Laboratories to read digits, and later read
# cheques in cash machines. It set the pattern: convolutions that see more and more with fewer and
# fewer pixels, then a few fully connected layers that decide. This is all of it, as it stands in
# `jaxcnn/models/lenet.py`:

# %%
print(inspect.getsource(jaxcnn.LeNet.__call__))


# %%
def print_shapes(model, input_shape):
    """Print d2l's table: type and output shape, channels first, of each layer."""
    for row in layer_summary(model, input_shape):
        if row.depth == 1:
            print(f"{row.type} output shape:\t {list(row.shape_nchw())}")


print_shapes(jaxcnn.LeNet(), (1, 28, 28, 1))

# %% [markdown]
# And what the shapes do not say: parameters, costs, and how many pixels of the picture each number
# depends on. The last pooling sees 16 x 16 of the 28 x 28 pixels. Four parameters in five are in
# the first fully connected layer; most of the work is in the convolutions.

# %%
plain = Console(width=100, force_jupyter=False, force_terminal=False)
plain.print(summary_table(layer_summary(jaxcnn.LeNet(), (1, 28, 28, 1))))

# %% [markdown]
# ### 7.6.2 Training
#
# Fashion-MNIST has ten kinds of clothing, in pictures of 28 x 28 gray pixels.

# %%
test = jaxcnn.data.load_fashion_mnist_sample("test")
first = [np.argmax(train.labels == label) for label in range(10)]
show(train.images[first, :, :, 0], train.class_names, columns=5)

# %% [markdown]
# `jaxcnn.fit` trains a network on a data set, evaluates it after each epoch, and lets the curves
# grow below the cell meanwhile. Its defaults are d2l's for LeNet. The sample is 30
# times smaller than Fashion-MNIST, so batches are made smaller too, for enough steps: a sigmoid
# passes on at most a quarter of a gradient, and four in a row leave the first layers almost
# nothing, so that LeNet stands still for over a thousand steps before it finds its way. On the
# full data, it reaches 0.71 to 0.74 after ten epochs here, 0.74 in PyTorch.

# %% tags=["trained"]
lenet = jaxcnn.fit("lenet", train, test, epochs=45, batch_size=32)

# %% [markdown]
# What comes back can be used at once: it predicts, and it can be evaluated. Its most confident
# mistakes say more than its accuracy: what it takes for what.


# %%
def show_mistakes(trained, count=8):
    """Draw the images that are predicted wrong with the highest probability."""
    evaluation = trained.evaluate(test)
    wrong = evaluation.mistakes()[:count]
    names = [test.class_names[label] for label in evaluation.probabilities[wrong].argmax(axis=1)]
    titles = [
        f"{test.class_names[test.labels[i]]}, taken\nfor {name}"
        for i, name in zip(wrong, names, strict=True)
    ]
    show(test.images[wrong, :, :, 0], titles)


# %% tags=["varies"]
print(lenet.predict(test.images[:4]))
show_mistakes(lenet)

# %% [markdown]
# ### Exercise: a modern LeNet
#
# Take ReLU, whose gradient is 1 wherever it passes anything, and the maximum instead of the mean.
# The shapes stay. The standstill is gone, and a third of the epochs does better.

# %%
print_shapes(jaxcnn.LeNetModern(), (1, 28, 28, 1))

# %% tags=["trained"]
modern = jaxcnn.fit("lenet_modern", train, test, epochs=15, batch_size=32)

# %% tags=["varies"]
show_mistakes(modern)

# %% [markdown]
# What has it learned? The six kernels of its first layer, and what they make of a boot. Some answer
# to edges of one direction, some to dark or bright surfaces. The 16 maps of the second layer are
# coarser, and harder to name.

# %% tags=["picture"]
kernels = modern.variables["params"]["conv1"]["kernel"]  # [5, 5, 1, 6]
show([kernels[:, :, 0, i] for i in range(6)], [f"kernel {i + 1}" for i in range(6)])

_, captured = jaxcnn.LeNetModern().apply(
    modern.variables, boot[None, :, :, None], capture_intermediates=True
)
maps = captured["intermediates"]
first_maps, second_maps = (maps[name]["__call__"][0][0] for name in ("conv1", "conv2"))
show([first_maps[:, :, i] for i in range(6)], [f"map {i + 1}" for i in range(6)])
show([second_maps[:, :, i] for i in range(16)], [""] * 16, columns=8)

# %% [markdown]
# ### A picture of one's own
#
# `predict` also takes files, of any size. Fashion-MNIST's clothes are light on black, and a picture
# to be predicted must be too. Here is a shirt that somebody drew; put a PNG of yours in its place.

# %%
drawing = Image.new("L", (200, 200))
pen = ImageDraw.Draw(drawing)
outline = [(20, 60), (70, 25), (130, 25), (180, 60), (160, 95), (140, 80), (140, 180), (60, 180)]
pen.polygon([*outline, (60, 80), (40, 95)], fill=190)
pen.ellipse((80, 5, 120, 45), fill=0)
path = Path(tempfile.mkdtemp()) / "shirt.png"
drawing.save(path)

# %% tags=["varies"]
print(modern.predict(path))
show([drawing], ["somebody's drawing"])

# %% [markdown]
# For clothes there is also a network that comes trained with the package, a small one (70,330
# parameters) whose recipe is in `configs/tiny.py`.

# %% tags=["varies"]
print(jaxcnn.load_pretrained("tiny").predict(path))

# %% [markdown]
# ## 8.2 VGG: networks of blocks
#
# Simonyan and Zisserman (Visual Geometry Group, Oxford, 2014) stopped designing layers one by one
# and repeated a *block*: some 3 x 3 convolutions with padding, which keep the size, each with its
# ReLU, then 2 x 2 max pooling, which halves it. Why small kernels? Two 3 x 3 layers see 5 x 5
# pixels like one 5 x 5 layer, with fewer parameters and one more ReLU: deep and narrow beats
# shallow and wide.

# %%
two = nn.Sequential([jaxcnn.Conv(64, kernel_size=3, use_bias=False) for _ in range(2)])
one = nn.Sequential([jaxcnn.Conv(64, kernel_size=5, use_bias=False)])
for name, model in (("two layers of 3 x 3", two), ("one layer of 5 x 5", one)):
    rows = layer_summary(model, (1, 32, 32, 64))
    parameters = sum(row.parameters for row in rows)
    print(f"{name}: {parameters:,} parameters, each output sees {rows[-1].receptive_field}")

# %% [markdown]
# ### 8.2.1 and 8.2.2 Blocks and network
#
# A VGG is named by its blocks: (number of convolutions, channels) of each. VGG-11 has eight
# convolutions and three fully connected layers:

# %%
vgg11 = jaxcnn.VGG(arch=((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)))
print_shapes(vgg11, (1, 224, 224, 1))

# %%
plain.print(summary_table(layer_summary(vgg11, (1, 224, 224, 1)), depth=1))

# %% [markdown]
# Of its 129 million parameters, 103 million lie between the last picture of 7 x 7 x 512 and the
# first hidden layer. The networks that came later average that picture away (8.6).
#
# ### 8.2.3 Training
#
# d2l trains a VGG with a quarter of the channels, on pictures of 224 x 224 pixels. On two
# CPU cores that takes a quarter of an hour per epoch, so here it has an eighth of them and gets
# 32 x 32: the same blocks, to one pixel before the hidden layers, which are narrower, too. Gradient
# descent alone stands still for long, much as LeNet did, and Adam does not: `fit` takes any
# optimizer of Optax.

# %%
vgg = jaxcnn.VGG(arch=((1, 8), (1, 16), (2, 32), (2, 64), (2, 64)), hidden_features=256)
print_shapes(vgg, (1, 32, 32, 1))

# %% tags=["trained"]
vgg_trained = jaxcnn.fit(
    vgg, train, test, epochs=6, batch_size=40, image_size=32, optimizer=optax.adam(1e-3)
)

# %% tags=["varies"]
show_mistakes(vgg_trained)

# %% [markdown]
# ## 8.6 Residual networks
# ### 8.6.1 Larger and larger, without going astray
#
# A deeper network can do more, but does it include what the shallower one could do? Only then are
# more layers certain not to be a step in a wrong direction. So let a new layer begin as one that
# changes nothing, and learn only the *difference* $g(x) = f(x) - x$ to that: $f(x) = x + g(x)$. To
# change nothing it needs only $g = 0$, which is easy to learn; a stack of plain layers would have
# to find the identity first. And on the way back, the sum hands the gradient on unchanged past the
# layers of $g$, however many such blocks there are.
#
# ### 8.6.2 Residual blocks
#
# He, Zhang, Ren and Sun (2016): 3 x 3 convolution, BatchNorm, ReLU, 3 x 3 convolution, BatchNorm;
# add the input; ReLU. Where shapes change, a 1 x 1 convolution takes the input along.

# %%
block = jaxcnn.Residual(3)
x = jax.random.normal(jax.random.key(3), (4, 6, 6, 3))
y, variables = block.init_with_output(jax.random.key(4), x)
nchw(y).shape

# %%
halving = jaxcnn.Residual(6, use_1x1conv=True, strides=2)
nchw(halving.init_with_output(jax.random.key(5), x)[0]).shape

# %% [markdown]
# The identity is one vector away: with BatchNorm's last scale at zero, $g = 0$, and the block
# hands on what it gets (here pictures without negative values, since a ReLU comes last).

# %%
variables["params"]["bn2"]["scale"] = jnp.zeros(3)
bool((block.apply(variables, jnp.abs(x)) == jnp.abs(x)).all())

# %% [markdown]
# ### 8.6.3 ResNet18
#
# A stem that brings the picture to a quarter of its height and width, then four stages of two
# blocks each; every stage but the first begins with a convolution of stride 2 and twice the
# channels. A mean over the picture, one fully connected layer, done: with 17 convolutions and one
# fully connected layer on the main path, 18.

# %%
print_shapes(jaxcnn.ResNet18(), (1, 96, 96, 1))

# %%
plain.print(summary_table(layer_summary(jaxcnn.ResNet18(), (1, 96, 96, 1)), depth=2))

# %% [markdown]
# ### 8.6.4 Training
#
# d2l trains it on pictures of 96 x 96 pixels; here they stay as they are, 28 x 28, the network has
# half of the blocks and a quarter of the channels, and 1,200 pictures, with momentum, have to do
# for two epochs. It needs more pictures and time than this to do better than the modern LeNet. (In
# full, on all 60,000 pictures of 96 x 96 pixels: `python train.py --config configs/resnet18.py`.)
#
# BatchNorm uses each batch's own mean and variance in training and running averages of them in
# evaluation. They are state that no gradient changes: `resnet.variables["batch_stats"]`, below.

# %% tags=["trained"]
narrow = jaxcnn.ResNet(arch=((1, 16), (1, 32), (1, 64), (1, 128)))
resnet = jaxcnn.fit(
    narrow,
    train.first(1200),
    test,
    epochs=2,
    batch_size=40,
    learning_rate=0.05,
    momentum=0.9,
)

# %% tags=["varies"]
show_mistakes(resnet)

# %% [markdown]
# ## A loop of one's own
#
# `fit` hides a loop that saves, resumes and stops at a signal. The step within it is a pure
# function of a state and a batch, for loops that it does not foresee:

# %%
model, optimizer = jaxcnn.LeNetModern(), optax.sgd(0.1)
state = jaxcnn.train.create_train_state(model, optimizer, (28, 28, 1), seed=0)
step = jax.jit(partial(jaxcnn.train.train_step, model=model, optimizer=optimizer))
batches, _ = jaxcnn.data.epoch_batches(0, 0, len(train.labels), 128)  # seed and epoch 0
for indices in batches:
    images = jaxcnn.data.preprocess(train.images[indices])
    state, metrics = step(state, images, train.labels[indices])
print(f"{int(state.step)} steps")
