# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by those who source this.
# Images as archives in the cache, and how they get into the nodes. An archive is built by hand where a layer of one or two files is
# all that there is to it.

archives=$cache/images
pause_image=docker.io/library/pause:0.1.0
busybox_image=docker.io/library/busybox:1

# The two images without which no pod and no volume can be: the holder of a pod's namespaces, and a shell.
images_up() {
    mkdir -p "$archives"
    rm -rf "$cache"/basic.??????
    archive_of pause "$pause_image" "$cache/bin/pause" '["/pause"]' pause_layer
    archive_of busybox "$busybox_image" "$busybox" '["/bin/sh"]' busybox_layer
}

pause_layer() { cp "$cache/bin/pause" "$1/pause"; }

busybox_layer() {
    mkdir -p "$1"/{bin,tmp,etc}
    chmod 1777 "$1/tmp"
    cp "$busybox" "$1/bin/busybox"
    local applet
    for applet in $("$busybox" --list | grep -vx busybox); do
        ln -s busybox "$1/bin/$applet"
    done
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
}

# Writes an archive if its program changed: name, image, program, command, and the function that fills the layer.
archive_of() {
    local name=$1 image=$2 program=$3 command=$4 fill=$5 stamp work digest
    stamp=$(cat "$program" "$kube_dir/image-lib.sh" | sha256sum | cut -d' ' -f1)
    if archive_is "$name" "$stamp"; then
        return 0
    fi
    work=$(mktemp -d "$cache/basic.XXXXXX")
    mkdir "$work/layer"
    "$fill" "$work/layer"
    tar -C "$work/layer" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$work/layer.tar" .
    digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
    cat >"$work/config.json" <<JSON
{"architecture": "$(go env GOARCH)", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]},
 "config": {"Entrypoint": $command, "Env": ["PATH=/bin"]}}
JSON
    printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]\n' "$image" >"$work/manifest.json"
    tar -C "$work" -cf "$work/image.tar" manifest.json config.json layer.tar
    archive_keep "$name" "$stamp" "$work/image.tar"
    rm -rf "$work"
}

# Whether there is an archive of this name that was made from this.
archive_is() { [ -e "$archives/$1.tar" ] && [ "$(cat "$archives/$1.stamp" 2>/dev/null)" = "$2" ]; }

archive_keep() {
    rm -f "$archives/$1.stamp"
    mv "$3" "$archives/$1.tar"
    printf '%s\n' "$2" >"$archives/$1.stamp"
}

# Imports into a node the archives that it doesn't have yet.
images_load() {
    local node=$1 archive name loaded=$run/node$1/images
    mkdir -p "$loaded"
    for archive in "$archives"/*.stamp; do
        name=$(basename "$archive" .stamp)
        if ! cmp -s "$archive" "$loaded/$name.stamp"; then
            node_ctr "$node" images import "$archives/$name.tar" >"$logs/node$node-import.log" 2>&1 ||
                { tail -n 5 "$logs/node$node-import.log" >&2; die "node$node doesn't take the image $name"; }
            cp "$archive" "$loaded/$name.stamp"
        fi
    done
}
