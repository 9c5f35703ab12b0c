# Nix: `nix run 'git+file:.?dir=packaging' -- run demo "What is mlxk?"`, `nix develop` in this folder for a shell.
# Parsed, but never evaluated or built. MLX is not taken from nixpkgs, whose version is not the tested one: uv installs
# the wheels of the package index on the first run, each checked against the hashes of the lock.
{
  description = "mlxk, the knife for local models on Apple's MLX";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "aarch64-darwin" "aarch64-linux" "x86_64-linux" ];
      source = self.sourceInfo.outPath;
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      # The wheels for Linux find these where other systems have them.
      libraries = pkgs: pkgs.lib.optionals pkgs.stdenv.isLinux [ pkgs.stdenv.cc.cc.lib pkgs.zlib pkgs.openblas ];
      wheel = pkgs:
        pkgs.runCommand "mlxk-wheel" { nativeBuildInputs = [ (pkgs.python312.withPackages (p: [ p.setuptools ])) ]; } ''
          cp -r ${source} source && chmod -R u+w source && cd source && mkdir -p $out
          python -c "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])" "$out"
        '';
      program = pkgs:
        pkgs.writeShellApplication {
          name = "mlxk";
          runtimeInputs = [ pkgs.uv pkgs.python312 pkgs.ffmpeg ];
          text = ''
            export LD_LIBRARY_PATH="${pkgs.lib.makeLibraryPath (libraries pkgs)}''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
            state="''${XDG_CACHE_HOME:-$HOME/.cache}/mlxk-nix/$(basename ${wheel pkgs})"
            if [ ! -e "$state/ready" ]; then
              uv venv --quiet --clear --python python3.12 "$state"
              uv pip install --quiet --python "$state/bin/python" --no-deps --require-hashes \
                -r ${source}/requirements/runtime.lock
              uv pip install --quiet --python "$state/bin/python" --no-deps ${wheel pkgs}/*.whl
              touch "$state/ready"
            fi
            exec "$state/bin/mlxk" "$@"
          '';
        };
    in
    {
      packages = forEach (pkgs: { default = program pkgs; });
      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          packages = [ pkgs.python312 pkgs.uv pkgs.gnumake pkgs.ffmpeg pkgs.nodejs ];
          LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath (libraries pkgs);
        };
      });
    };
}
