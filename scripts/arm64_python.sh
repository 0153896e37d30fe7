#!/usr/bin/env bash
# Put an arm64 Python with numpy and llvmlite into .arm64/, for the tests that run the native engine by emulation.
# Needs debootstrap and root; changes nothing outside the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf .arm64
mkdir .arm64
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3-minimal,libpython3-stdlib bookworm "$PWD/.arm64/root"
for package in .arm64/root/var/cache/apt/archives/*.deb; do
    dpkg-deb --extract "$package" .arm64/root
done
rm -r .arm64/root/var/cache/apt/archives
${PYTHON:-.venv/bin/python} -m pip install --quiet --no-deps --target .arm64/packages --only-binary=:all: \
    --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --constraint constraints.txt numpy llvmlite
touch .arm64/complete
