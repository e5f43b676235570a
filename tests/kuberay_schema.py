"""The fields of KubeRay's RayCluster and RayJob (release 1.7), and of Kubernetes' pod templates as far as ours use them.

Written down from the published API reference as JSON schema, so that a test needs no network: a misspelt or misplaced field
is an unknown one. Types are checked where a wrong one is an easy slip: rayStartParams and environment variables are strings.
"""

from typing import Any

Schema = dict[str, Any]

_text: Schema = {"type": "string"}
_number: Schema = {"type": "integer", "minimum": 0}
_positive: Schema = {"type": "integer", "minimum": 1}
_flag: Schema = {"type": "boolean"}
_texts: Schema = {"type": "object", "additionalProperties": _text}
_anything: Schema = {}


def _choice(*values: str) -> Schema:
    return {"enum": list(values)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: str = "", **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


_quantity: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
_quantities: Schema = {"type": "object", "additionalProperties": _quantity}
_resources = _object(requests=_quantities, limits=_quantities)
_key = _object("name key", name=_text, key=_text, optional=_flag)
_variable = _object(
    "name", name=_text, value=_text, valueFrom=_object(secretKeyRef=_key, configMapKeyRef=_key, fieldRef=_anything)
)
_reference = _object("name", name=_text, optional=_flag)
_container = _object(
    "name image",
    name=_text,
    image=_text,
    imagePullPolicy=_choice("Always", "IfNotPresent", "Never"),
    command=_list(_text),
    args=_list(_text),
    env=_list(_variable),
    envFrom=_list(_object(configMapRef=_reference, secretRef=_reference, prefix=_text)),
    ports=_list(_object("containerPort", name={"type": "string", "maxLength": 15}, containerPort=_positive, protocol=_text)),
    resources=_resources,
    volumeMounts=_list(_object("name mountPath", name=_text, mountPath=_text, readOnly=_flag, subPath=_text)),
    securityContext=_anything,
    lifecycle=_anything,
    livenessProbe=_anything,
    readinessProbe=_anything,
    workingDir=_text,
)
_toleration = _object(
    key=_text,
    operator=_choice("Exists", "Equal"),
    value=_text,
    effect=_choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds=_number,
)
_volume = _object(
    "name",
    name=_text,
    emptyDir=_object(medium=_choice("", "Memory"), sizeLimit=_quantity),
    persistentVolumeClaim=_object("claimName", claimName=_text, readOnly=_flag),
    secret=_anything,
    configMap=_anything,
)
_pod = _object(
    "containers",
    containers=_list(_container),
    initContainers=_list(_container),
    volumes=_list(_volume),
    tolerations=_list(_toleration),
    nodeSelector=_texts,
    affinity=_anything,
    restartPolicy=_choice("Always", "OnFailure", "Never"),
    terminationGracePeriodSeconds=_number,
    shareProcessNamespace=_flag,
    securityContext=_object(
        runAsNonRoot=_flag, runAsUser=_number, runAsGroup=_number, fsGroup=_number, supplementalGroups=_list(_number)
    ),
    serviceAccountName=_text,
    imagePullSecrets=_list(_reference),
    priorityClassName=_text,
)
_template = _object("spec", metadata=_anything, spec=_pod)

_head = _object(
    "template rayStartParams",
    template=_template,
    headService=_anything,
    enableIngress=_flag,
    ingressOptions=_anything,
    resources=_texts,
    labels=_texts,
    rayStartParams=_texts,
    serviceType=_choice("ClusterIP", "NodePort", "LoadBalancer"),
)
_workers = _object(
    "groupName template rayStartParams minReplicas maxReplicas",
    suspend=_flag,
    groupName=_text,
    replicas=_number,
    minReplicas=_number,
    maxReplicas=_number,
    idleTimeoutSeconds=_number,
    priority=_number,
    resources=_texts,
    labels=_texts,
    rayStartParams=_texts,
    template=_template,
    scaleStrategy=_object(workersToDelete=_list(_text)),
    numOfHosts=_positive,
)
_autoscaler = _object(
    resources=_resources,
    image=_text,
    imagePullPolicy=_text,
    securityContext=_anything,
    idleTimeoutSeconds=_number,
    upscalingMode=_choice("Default", "Aggressive", "Conservative"),
    version=_choice("v1", "v2"),
    env=_list(_variable),
    envFrom=_anything,
    volumeMounts=_anything,
    command=_list(_text),
    args=_list(_text),
)
_cluster = _object(
    "headGroupSpec",
    upgradeStrategy=_object(type=_choice("Recreate", "None")),
    authOptions=_object(mode=_choice("disabled", "token"), secretName=_text, enableK8sTokenAuth=_flag),
    suspend=_flag,
    managedBy=_text,
    autoscalerOptions=_autoscaler,
    headServiceAnnotations=_texts,
    enableInTreeAutoscaling=_flag,
    gcsFaultToleranceOptions=_anything,
    historyServerOptions=_anything,
    networkPolicy=_anything,
    tlsOptions=_object(enabled=_flag),
    headGroupSpec=_head,
    rayVersion=_text,
    workerGroupSpecs=_list(_workers),
)
_job = _object(
    "entrypoint",
    activeDeadlineSeconds=_positive,
    backoffLimit=_number,
    rayClusterSpec=_cluster,
    submitterPodTemplate=_template,
    metadata=_texts,
    clusterSelector=_texts,
    submitterConfig=_object(backoffLimit=_number),
    managedBy=_text,
    deletionStrategy=_anything,
    entrypoint=_text,
    runtimeEnvYAML=_text,
    jobId=_text,
    submissionMode=_choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=_text,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=_number,
    preRunningDeadlineSeconds=_positive,
    shutdownAfterJobFinishes=_flag,
    suspend=_flag,
)


def _resource(api: str, kind: str, **parts: Schema) -> Schema:
    names = _object("name", name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}, namespace=_text, labels=_texts)
    required = " ".join(["apiVersion", "kind", "metadata", *parts])
    return _object(required, apiVersion=_choice(api), kind=_choice(kind), metadata=names, **parts)


SCHEMAS = {
    "RayCluster": _resource("ray.io/v1", "RayCluster", spec=_cluster),
    "RayJob": _resource("ray.io/v1", "RayJob", spec=_job),
    "ConfigMap": _resource("v1", "ConfigMap", data=_texts),
}
