"""The specification of views and the engines that run it on a device."""
