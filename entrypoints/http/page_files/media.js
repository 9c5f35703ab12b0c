// Images, clips and sound for a message, and recordings. Sound becomes WAV here, which every server reads.

const RATE = 16_000;

// Some browsers do not know them.
const BY_ENDING = {
  heic: "image/heic",
  heif: "image/heif",
  avif: "image/avif",
  flac: "audio/flac",
  m4a: "audio/mp4",
  avi: "video/x-msvideo",
  mkv: "video/x-matroska",
  mov: "video/quicktime",
};

/** Returns a file as an attachment: {kind, name, url, format}. */
export async function attachmentOf(file) {
  const type = file.type || (BY_ENDING[file.name.split(".").pop().toLowerCase()] ?? "");
  if (type.startsWith("image/")) {
    return { kind: "image", name: file.name, url: await dataUrl(new Blob([file], { type })), format: "" };
  }
  if (type.startsWith("video/") && (await hasPictures(file))) {
    return { kind: "video", name: file.name, url: await dataUrl(new Blob([file], { type })), format: "" };
  }
  if (type === "audio/mpeg") return { kind: "audio", name: file.name, url: await dataUrl(file), format: "mp3" };
  if (type.startsWith("audio/") || type.startsWith("video/")) return soundOf(file, file.name);
  throw new Error(`${file.name || "This"} is no image, clip or sound (${type || "of unknown type"}).`);
}

/** Returns the sound of a file as an attachment. */
export async function soundOf(blob, name) {
  return { kind: "audio", name, url: await dataUrl(await wav(blob)), format: "wav" };
}

/** Whether a file of a type for clips has pictures; recordings of some browsers have none. Unreadable ones may. */
function hasPictures(file) {
  const video = document.createElement("video");
  video.src = URL.createObjectURL(file);
  return new Promise((resolve) => {
    video.onloadedmetadata = () => resolve(video.videoWidth > 0);
    video.onerror = () => resolve(true);
  }).finally(() => URL.revokeObjectURL(video.src));
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Returns an attachment as a file. */
export function blobOf(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5, head.indexOf(";")) });
}

/** Returns sound as WAV of one channel at 16 kHz, which is what models hear. */
export async function wav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  let sound;
  try {
    sound = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error(`${blob.name || "The recording"} holds no sound that this browser reads.`);
  }
  const mixed = new OfflineAudioContext(1, Math.max(1, Math.ceil(sound.duration * RATE)), RATE);
  const source = mixed.createBufferSource();
  source.buffer = sound;
  source.connect(mixed.destination);
  source.start();
  const samples = (await mixed.startRendering()).getChannelData(0);
  const data = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((sign, index) => data.setUint8(place + index, sign.charCodeAt(0)));
  text(0, "RIFF");
  data.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, RATE, 4], [28, 2 * RATE, 4], [32, 2, 2], [34, 16, 2]].forEach(
    ([place, value, size]) => (size === 4 ? data.setUint32(place, value, true) : data.setUint16(place, value, true)),
  );
  text(36, "data");
  data.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => {
    data.setInt16(44 + 2 * index, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
  });
  return new Blob([data], { type: "audio/wav" });
}

/** Records from the microphone until it is stopped. */
export class Recorder {
  /** @throws Error The browser gives no microphone, with the reason. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give the microphone to pages of this machine (127.0.0.1) or of https only.");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (fault) {
      throw new Error(`The browser gives no microphone: ${fault.message}. Allow it for this page.`);
    }
    this.recorder = new MediaRecorder(this.stream);
    this.parts = [];
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.recorder.start();
  }

  /** Returns what was said, as WAV. */
  async stop() {
    const ended = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.stop();
    await ended;
    for (const track of this.stream.getTracks()) track.stop();
    return wav(new Blob(this.parts, { type: this.recorder.mimeType }));
  }
}
