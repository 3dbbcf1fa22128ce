#!/bin/sh
# Installs by package name what a fresh Debian lacks, and says so when it cannot.
#   setup.sh rust         Rust 1.95 or later, a C compiler, cmake (for the TLS library)
#   setup.sh data DIR     Fashion-MNIST, unless DIR holds it
#   setup.sh browser      Chromium, in which a test opens the simulator's report
#   setup.sh python       Python with virtual environments, for the second accountant
set -eu

# Installs packages, or says what to install.
install_packages() {
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $* …" >&2
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
    else
        echo "error: $* is missing, and only root on Debian can install it from here" >&2
        echo "hint: $hint" >&2
        exit 1
    fi
}

case "$1" in
rust)
    command -v cargo >/dev/null 2>&1 || {
        echo "error: cargo is missing" >&2
        echo "hint: install Rust 1.95 or later, https://rust-lang.org/tools/install" >&2
        exit 1
    }
    version=$(rustc --version | cut -d' ' -f2)
    oldest=$(printf '1.95.0\n%s\n' "$version" | sort -V | head -n 1)
    [ "$oldest" = 1.95.0 ] || {
        echo "error: rustc is $version, Comity needs 1.95 or later" >&2
        echo "hint: rustup update stable" >&2
        exit 1
    }
    hint="install a C compiler (Debian: apt-get install gcc libc6-dev)"
    command -v cc >/dev/null 2>&1 || install_packages gcc libc6-dev
    ;;
data)
    dir=$2
    if [ ! -e "$dir/train-images-idx3-ubyte.gz" ] && [ ! -e "$dir/train-images-idx3-ubyte" ]; then
        hint="install the Debian package dataset-fashion-mnist, or give its four files with DATA=dir"
        if [ "$dir" != /usr/share/datasets/fashion-mnist ]; then
            echo "error: $dir holds no train-images-idx3-ubyte.gz" >&2
            echo "hint: $hint" >&2
            exit 1
        fi
        install_packages dataset-fashion-mnist
    fi
    ;;
browser)
    for name in chromium chromium-browser google-chrome chrome; do
        command -v "$name" >/dev/null 2>&1 && exit 0
    done
    hint="install Chromium (Debian: apt-get install chromium)"
    install_packages chromium
    ;;
python)
    hint="install Python 3 with venv (Debian: apt-get install python3 python3-venv)"
    install_packages python3 python3-venv
    ;;
*)
    echo "usage: setup.sh rust | data DIR | browser | python" >&2
    exit 2
    ;;
esac
