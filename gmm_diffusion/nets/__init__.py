"""Denoising networks by name: (out_channels, classes, options) -> a linen module called as net(x,
t, cond, train=...)."""

from gmm_diffusion.nets.cnn import CNN
from gmm_diffusion.nets.dit import DiT
from gmm_diffusion.nets.unet import UNet

NETS = {'unet': UNet, 'dit': DiT, 'cnn': CNN}
