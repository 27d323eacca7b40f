"""For plugins of real data: folders of class folders, pictures, sounds, decoded tables, downloads and archives."""
