"""What plugins of real data share: folders of class folders, their splits, pictures, tables, downloads, archives."""
