#!/usr/bin/env bash
# Put an arm64 Python with numpy and llvmlite into a folder, for the tests that run the native engine by emulation:
#     scripts/get_arm64_python.sh FOLDER
# Needs debootstrap and root; changes nothing outside the folder.
set -euo pipefail
folder=$(realpath "$1")
cd "$(dirname "$0")/.."

rm -rf "$folder"
mkdir -p "$folder"
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3-minimal,libpython3-stdlib bookworm "$folder/root"
for package in "$folder"/root/var/cache/apt/archives/*.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
rm -r "$folder/root/var/cache/apt/archives"
.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder/packages" \
    --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --constraint constraints.txt numpy llvmlite
