# Homebrew's formula. `make dist` writes it to dist/mlxk.rb with the version and the hash of the source archive; its
# address exists once that version is on the package index. Not audited by `brew audit`, which needs a Mac.
#
# MLX is published as wheels only, so the packages come from the index, each file checked against the hashes that the
# archive brings in requirements/runtime.lock. homebrew-core does not take such formulas; a tap does.
class Mlxk < Formula
  desc "Knife for local models on Apple's MLX: list, pull, run, serve, repair, publish"
  homepage "https://pypi.org/project/mlxk/"
  url "https://files.pythonhosted.org/packages/source/m/mlxk/mlxk-@VERSION@.tar.gz"
  sha256 "@SHA256@"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@3.13"

  def install
    python = Formula["python@3.13"].opt_bin/"python3.13"
    system python, "-m", "venv", libexec
    pip = [libexec/"bin/python", "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    system(*pip, "--require-hashes", "-r", "requirements/runtime.lock")
    system(*pip, buildpath)
    bin.install_symlink libexec/"bin/mlxk", libexec/"bin/mlx-run"
    generate_completions_from_executable(bin/"mlxk", "completion")
  end

  service do
    run [opt_bin/"mlxk", "serve"]
    keep_alive successful_exit: false
    process_type :interactive
    log_path var/"log/mlxk.log"
    error_log_path var/"log/mlxk.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/mlxk --version")
    assert_match "mlxk is the knife", shell_output("#{bin}/mlxk run demo 'What is mlxk?'")
  end
end
