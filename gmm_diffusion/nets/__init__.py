"""Networks by name: (out_channels, classes, options) -> a linen module called as net(x, t, labels, train=...)."""

from gmm_diffusion.nets.unet import UNet

NETS = {'unet': UNet}
