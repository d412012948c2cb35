"""Small archives in the exact layouts of the published ones, and the poses that stand in them."""

import io
import tarfile
import zipfile

import cv2
import numpy as np
from scipy.spatial.transform import Rotation


def random_pose(seed, spread=2.0):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = np.random.default_rng(seed).uniform(-spread, spread, 3)
    return pose


def matrix_text(pose):
    return "\n".join("\t ".join(f"{v:.7e}" for v in row) for row in pose) + "\n"


def image_bytes(width, height, seed, ending=".png"):
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(ending, image)[1].tobytes()


def zip_bytes(entries, directories=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in directories:
            file.writestr(name + "/", b"")
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def world_to_camera_columns(pose):
    x, y, z, w = Rotation.from_matrix(pose[:3, :3].T).as_quat()
    t = -pose[:3, :3].T @ pose[:3, 3]
    return " ".join(f"{v:.12f}" for v in (w, x, y, z, *t))


def sevenscenes(scene="heads", train="2", test="1", count=3):
    """Returns the archive, the depth camera's poses by (sequence, number) and one depth map."""
    poses, outer = {}, []
    depth = np.zeros((480, 640), np.uint16)
    depth[100:400, 100:500] = 2000
    depth[200:220, 200:220] = 65535
    for sequence in (int(train), int(test)):
        inner = []
        for i in range(count):
            poses[sequence, i] = random_pose(100 * sequence + i)
            stem = f"seq-{sequence:02d}/frame-{i:06d}"
            inner += [
                (f"{stem}.color.png", image_bytes(640, 480, i)),
                (f"{stem}.depth.png", cv2.imencode(".png", depth)[1].tobytes()),
                (f"{stem}.pose.txt", matrix_text(poses[sequence, i])),
            ]
        inner.append((f"seq-{sequence:02d}/Thumbs.db", b"junk"))
        outer.append((f"{scene}/seq-{sequence:02d}.zip", zip_bytes(inner)))
    outer += [
        (f"{scene}/TrainSplit.txt", f"sequence{train}\r\n"),
        (f"{scene}/TestSplit.txt", f"sequence{test}\r\n"),
        (f"{scene}/{scene}.png", image_bytes(64, 48, 0)),
    ]
    return zip_bytes(outer, [scene]), poses, depth


def pgt_list(names, poses, focal):
    lines = [f"{n} {world_to_camera_columns(p)} {focal}" for n, p in zip(names, poses, strict=True)]
    return ("\n".join(reversed(lines)) + "\n").encode()  # the order is arbitrary


def twelvescenes(rooms=("kitchen", "living"), count=5, test=2, lost=(3,)):
    """Returns the archive of a building and the poses by (room, number)."""
    entries, poses = [], {}
    for k, room in enumerate(rooms):
        base = f"apt1/{room}"
        entries += [
            (
                f"{base}/split.txt",
                f"sequence0 [frames={test}]  [start=0 ; end={test - 1}]\nsequence1 [frames={count - test}]\n",
            ),
            (
                f"{base}/info.txt",
                "m_versionNumber = 4\nm_sensorName = StructureSensor\nm_colorWidth = 1296\nm_colorHeight = 968\nm_depthWidth = 640\nm_depthHeight = 480\nm_depthShift = 1000\nm_calibrationColorIntrinsic = 1158.3 0 649 0 0 1153.53 483.5 0 0 0 1 0 0 0 0 1\n",
            ),
            (f"{base}/{room}.ply", b"ply"),
        ]
        for i in range(count):
            poses[room, i] = random_pose(1000 * k + i)
            text = "-INF " * 16 if i in lost else matrix_text(poses[room, i])
            stem = f"{base}/data/frame-{i:06d}"
            entries += [
                (f"{stem}.color.jpg", image_bytes(1296, 968, i, ".jpg")),
                (f"{stem}.depth.png", b"not read"),
                (f"{stem}.pose.txt", text),
            ]
    entries.append(("apt1/README.txt", b"readme"))
    return zip_bytes(entries), poses


def cambridge(scene="ShopFacade", train=3, test=2):
    """Returns the archive and the poses by image."""
    names = [f"seq{1 + i % 2}/frame{i:05d}.png" for i in range(train + test)]
    poses = {name: random_pose(i, 30) for i, name in enumerate(names)}
    poses["seq9/frame00099.png"] = random_pose(99)
    poses["seq9/frame00099.png"][:3, 3] = 20_000.0
    cameras, entries = [], []
    for i, (name, pose) in enumerate(poses.items()):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3].T).as_quat()
        c = pose[:3, 3]
        jpg = name.replace(".png", ".jpg")
        cameras.append(f"{jpg}\t{1600 + i} {w} {x} {y} {z} {c[0]} {c[1]} {c[2]} -0.05 0 ")
        entries.append((f"{scene}/{name}", image_bytes(1920, 1080, i)))

    def lines(chosen):
        head = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
        for name in chosen:
            x, y, z, w = Rotation.from_matrix(poses[name][:3, :3].T).as_quat()
            c = poses[name][:3, 3]
            head += f"{name} {c[0]:.9f} {c[1]:.9f} {c[2]:.9f} {w:.12f} {x:.12f} {y:.12f} {z:.12f}\n"
        return head

    entries += [
        (f"{scene}/dataset_train.txt", lines([*names[:train], "seq9/frame00099.png"])),
        (f"{scene}/dataset_test.txt", lines(names[train:])),
        (
            f"{scene}/reconstruction.nvm",
            f"NVM_V3 \n\n{len(cameras)}\n" + "\n".join(reversed(cameras)) + "\n\n0\n",
        ),
        (f"{scene}/videos/seq1.mp4", b"video"),
    ]
    return zip_bytes(entries), poses, names


def aachen():
    """Returns the files by path and the poses by image."""
    poses = {f"db/{i}.jpg": random_pose(i, 50) for i in (2, 10, 3)}
    cameras = []
    for name, pose in poses.items():
        x, y, z, w = Rotation.from_matrix(pose[:3, :3].T).as_quat()
        c = pose[:3, 3]
        cameras.append(f"{name} 1000 {w} {x} {y} {z} {c[0]} {c[1]} {c[2]} 0.04 0")
    listed = "".join(f"{name} 1 2 3\n" for name in reversed(poses))
    images = [
        (f"images_upright/{name}", image_bytes(1600, 1200, i, ".jpg"))
        for i, name in enumerate(poses)
    ]
    queries = {"day": "query/day/milestone/q1.jpg", "night": "query/night/nexus5x/q2.jpg"}
    images += [
        (f"images_upright/{queries['day']}", image_bytes(1200, 1600, 7, ".jpg")),
        (f"images_upright/{queries['night']}", image_bytes(1600, 1200, 8, ".jpg")),
        ("README.md", b"readme"),
    ]
    base = "aachen/"
    files = {
        base + "images/database_and_query_images.zip": zip_bytes(images),
        base + "3D-models/aachen_cvpr2018_db.nvm": f"NVM_V3\n\n{len(cameras)}\n"
        + "\n".join(cameras)
        + "\n\n0\n",
        base + "3D-models/aachen_cvpr2018_db.list.txt": listed,
        base
        + "queries/day_time_queries_with_intrinsics.txt": f"{queries['day']} SIMPLE_RADIAL 1200 1600 1400.5 600 800 -0.03\n",
        base
        + "queries/night_time_queries_with_intrinsics.txt": f"{queries['night']} SIMPLE_RADIAL 1600 1200 1300 800 600 0.01\n",
    }
    return {k: v if isinstance(v, bytes) else v.encode() for k, v in files.items()}, poses


def wayspots(scenes=("bears", "map"), prefix="wayspots_"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for k, scene in enumerate(scenes):
            for split, count in (("train", 3), ("test", 2)):
                for i in range(count):
                    for path, content in (
                        (f"rgb/frame_{i:04d}.color.jpg", image_bytes(64, 48, i, ".jpg")),
                        (
                            f"poses/frame_{i:04d}.pose.txt",
                            matrix_text(random_pose(10 * k + i)).encode(),
                        ),
                        (f"calibration/frame_{i:04d}.calibration.txt", b"60.5\n"),
                    ):
                        info = tarfile.TarInfo(f"{prefix}{scene}/{split}/{path}")
                        info.size = len(content)
                        file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
